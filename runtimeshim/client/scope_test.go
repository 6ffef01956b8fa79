package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/procfd"
)

// fakeSystemd is a service manager that supports only scopes. busctl, found by PATH, is this test
// binary, and each scope is a cgroup in the hierarchy that systemd uses for its units.
type fakeSystemd struct {
	t    *testing.T
	dir  string // the calls, and the properties set with is
	root string // the cgroup that serves as root
	logs logBuffer
}

const systemdEnv = "CRIBOX_TEST_SYSTEMD" // the folder, a space, and the cgroup

func newSystemd(t *testing.T) *fakeSystemd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lasting(t, &scopeCall, testWait)
	lasting(t, &scopeQuiet, testWait)
	s := &fakeSystemd{t: t, dir: t.TempDir()}
	all := cgroup.Mounts()
	home := slices.IndexFunc(all, func(h cgroup.Hierarchy) bool { return slices.Contains(h.Names, "name=systemd") })
	if home < 0 {
		home = slices.IndexFunc(all, func(h cgroup.Hierarchy) bool { return h.Names == nil })
	}
	if home < 0 {
		t.Skip("no hierarchy that systemd would use")
	}
	s.root = filepath.Join(all[home].Mount, "cribox-test-"+strconv.Itoa(os.Getpid()))
	must(t, os.Mkdir(s.root, 0o755))
	t.Cleanup(func() { must(t, cgroup.Remove(context.Background(), []string{s.root})) })
	exe, err := os.Executable()
	must(t, err)
	must(t, os.Mkdir(filepath.Join(s.dir, "bin"), 0o755))
	must(t, os.Symlink(exe, filepath.Join(s.dir, "bin/busctl")))
	t.Setenv("PATH", filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"))
	t.Setenv(systemdEnv, s.dir+" "+s.root)
	firstProcess(t, "systemd\n")
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// firstProcess sets the name of process 1 until the test ends.
func firstProcess(t *testing.T, name string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "comm")
	must(t, os.WriteFile(file, []byte(name), 0o600))
	old := procfd.InitName
	procfd.InitName = file
	t.Cleanup(func() { procfd.InitName = old })
}

// lasting sets a limit until the test ends.
func lasting(t *testing.T, limit *time.Duration, d time.Duration) {
	old := *limit
	*limit = d
	t.Cleanup(func() { *limit = old })
}

// logBuffer has what the client has logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func scopeOf(peer string) string { return "box-" + peer + ".scope" }

// connect starts a daemon under this systemd, with h's shim and logger.
func (s *fakeSystemd) connect(h *host) {
	h.t.Helper()
	h.client.Close()
	exe, err := os.Executable()
	must(h.t, err)
	logger := logrus.New()
	logger.SetOutput(&s.logs)
	ctx := log.WithLogger(context.Background(), logrus.NewEntry(logger))
	h.client, err = Connect(ctx, Config{State: h.state, Executable: exe, OnExit: h.onExit, Scope: scopeOf})
	must(h.t, err)
}

// is sets a property of the fake: deaf (does not answer), or NAME.taken (a scope with that name
// exists).
func (s *fakeSystemd) is(what string) {
	must(s.t, os.WriteFile(filepath.Join(s.dir, what), nil, 0o600))
}
func (s *fakeSystemd) isNot(what string) {
	must(s.t, os.Remove(filepath.Join(s.dir, what)))
}

func (s *fakeSystemd) scope(name string) string {
	return filepath.Join(s.root, sliceFor(unitOf(os.Getpid())), name)
}

// waitPlaced waits until the living peer is in its scope.
func (s *fakeSystemd) waitPlaced(h *host, peers ...string) {
	h.t.Helper()
	for _, peer := range peers {
		h.eventually(peer+" is in its scope", func() bool {
			return slices.Contains(cgroup.Procs(s.scope(scopeOf(peer))), h.lockPid(peer+".lock"))
		})
	}
}

// managerCall is one call that busctl received.
type managerCall struct {
	Method string
	Args   []any
}

// calls lists the calls of a method for a scope.
func (s *fakeSystemd) calls(method, scope string) (found []managerCall) {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var c managerCall
		must(s.t, json.Unmarshal([]byte(line), &c))
		if c.Method == method && c.Args[0] == scope {
			found = append(found, c)
		}
	}
	return found
}

// busctlMain implements busctl(1) call.
func busctlMain(args []string) error {
	dir, root, _ := strings.Cut(os.Getenv(systemdEnv), " ")
	const manager = "org.freedesktop.systemd1"
	if len(args) < 6 || !slices.Equal(args[:4], []string{"call", manager, "/org/freedesktop/systemd1", manager + ".Manager"}) {
		return fmt.Errorf("unexpected %q", args)
	}
	c := managerCall{Method: args[4]}
	words := args[6:]
	for sig := args[5]; sig != ""; {
		var v any
		v, sig = unmarshal(sig, &words)
		c.Args = append(c.Args, v)
	}
	if len(words) > 0 {
		return fmt.Errorf("too many parameters: %q", words)
	}
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	if exists(filepath.Join(dir, "deaf")) {
		// This process is killed before that. Without cgo an empty select is reported as a
		// deadlock.
		time.Sleep(time.Hour)
	}
	name := c.Args[0].(string)
	switch args[4] + " " + args[5] {
	case "StartTransientUnit ssa(sv)a(sa(sv))":
		p := properties(c)
		scope := filepath.Join(root, p["Slice"].(string), name)
		if exists(filepath.Join(dir, name+".taken")) || len(cgroup.Procs(scope)) > 0 {
			return fmt.Errorf("call failed: Unit %s was already loaded or has a fragment file", name)
		}
		if err := os.MkdirAll(scope, 0o755); err != nil {
			return err
		}
		return moveTo(scope, p["PIDs"])
	case "AttachProcessesToUnit ssau":
		scopes, _ := filepath.Glob(filepath.Join(root, "*", name))
		if len(scopes) != 1 || c.Args[1] != "" || len(cgroup.Procs(scopes[0])) == 0 {
			return fmt.Errorf("call failed: Unit %s is not active", name)
		}
		return moveTo(scopes[0], c.Args[2])
	}
	return fmt.Errorf("call failed: no method %q", args[4:6])
}

func moveTo(cgroup string, pids any) error {
	for _, pid := range pids.([]any) {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(pid.(string)), 0); err != nil {
			return err
		}
	}
	return nil
}

// properties returns the properties of a StartTransientUnit call.
func properties(c managerCall) map[string]any {
	found := map[string]any{}
	for _, p := range c.Args[2].([]any) {
		pair := p.([]any)
		found[pair[0].(string)] = pair[1]
	}
	return found
}

// unmarshal reads one value of the signature's first type from words, and returns it and the rest
// of the signature.
func unmarshal(sig string, words *[]string) (any, string) {
	next := func() string {
		word := (*words)[0]
		*words = (*words)[1:]
		return word
	}
	switch kind, rest := sig[0], sig[1:]; kind {
	case 's', 'u', 'i', 'b', 't':
		return next(), rest
	case 'v':
		v, left := unmarshal(next(), words)
		if left != "" {
			panic("variant of more than one type: " + left)
		}
		return v, rest
	case 'a':
		n, err := strconv.Atoi(next())
		if err != nil {
			panic(err)
		}
		list := []any{}
		for range n {
			v, _ := unmarshal(rest, words)
			list = append(list, v)
		}
		return list, rest[width(rest):]
	case '(':
		var fields []any
		for rest[0] != ')' {
			var v any
			v, rest = unmarshal(rest, words)
			fields = append(fields, v)
		}
		return fields, rest[1:]
	default:
		panic("type " + sig)
	}
}

// width returns the length of a signature's first type.
func width(sig string) int {
	switch sig[0] {
	case 'a':
		return 1 + width(sig[1:])
	case '(':
		n := 1
		for sig[n] != ')' {
			n += width(sig[n:])
		}
		return n + 1
	}
	return 1
}

// TestScopes: shim and logger in the daemon's cgroup get scopes when a daemon with scopes connects,
// and so does each later shim and logger. Tasks are not affected.
func TestScopes(t *testing.T) {
	s := newSystemd(t)
	h := newHost(t)
	h.pod("pod")
	task := h.startCounter("c", "pod")
	s.connect(h)
	s.waitPlaced(h, "shim", "logger")
	calls := s.calls("StartTransientUnit", "box-shim.scope")
	if len(calls) != 1 || calls[0].Args[1] != "fail" {
		t.Fatalf("calls: %v", calls)
	}
	want := map[string]any{"PIDs": []any{strconv.Itoa(h.lockPid("shim.lock"))}, "Description": "cribox shim", "Slice": "system.slice", "Delegate": "true",
		"DefaultDependencies": "false", "CollectMode": "inactive-or-failed", "KillSignal": "9", "TasksMax": "18446744073709551615"}
	if got := properties(calls[0]); !maps.EqualFunc(got, want, func(a, b any) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Errorf("properties are %v, want %v", got, want)
	}

	s.connect(h) // finds the shim in its scope
	h.kill9("logger.lock")
	h.eventually("a second scope for the logger", func() bool { return len(s.calls("StartTransientUnit", "box-logger.scope")) > 1 })
	s.waitPlaced(h, "logger")
	if calls := s.calls("StartTransientUnit", "box-shim.scope"); len(calls) != 1 {
		t.Errorf("a shim that has its scope was placed again: %v", calls)
	}
	h.kill9("shim.lock")
	h.eventually("a second scope for the shim", func() bool { return len(s.calls("StartTransientUnit", "box-shim.scope")) > 1 })
	s.waitPlaced(h, "shim")
	h.finishCounter(task)
	h.wantExit("c", 7)
	h.wantCounted("c", 2000)
	h.start(h.params("later", sh("exit 3")))
	h.wantExit("later", 3)
	if n := s.logs.count("scope"); n > 0 {
		t.Errorf("%d lines in the log about what went well", n)
	}
}

// TestScopeNameIsTaken: until systemd has collected a dead peer's scope, the next peer stays
// outside.
func TestScopeNameIsTaken(t *testing.T) {
	lasting(t, &scopeJoin, testWait)
	s := newSystemd(t)
	s.is("box-shim.scope.taken")
	h := newHost(t)
	s.connect(h)
	h.eventually("tries for a new scope", func() bool { return len(s.calls("StartTransientUnit", "box-shim.scope")) > 2 })
	if calls := s.calls("AttachProcessesToUnit", "box-shim.scope"); len(calls) > 0 {
		t.Errorf("joined a scope that may be about to be stopped: %v", calls)
	}
	s.isNot("box-shim.scope.taken")
	s.waitPlaced(h, "shim", "logger")
}

// TestScopeIsKept: a scope that does not end, because processes of the dead peer live in it, is
// joined.
func TestScopeIsKept(t *testing.T) {
	lasting(t, &scopeJoin, 0)
	s := newSystemd(t)
	must(t, os.MkdirAll(s.scope("box-shim.scope"), 0o755))
	left := exec.Command("sleep", "1000000")
	must(t, left.Start())
	defer func() { _ = left.Process.Kill(); _ = left.Wait() }()
	must(t, os.WriteFile(filepath.Join(s.scope("box-shim.scope"), "cgroup.procs"), []byte(strconv.Itoa(left.Process.Pid)), 0))
	h := newHost(t)
	s.connect(h)
	s.waitPlaced(h, "shim", "logger")
}

// TestSystemdDoesNotAnswer: nothing waits for systemd, and one line is logged for each peer until
// it is in its scope.
func TestSystemdDoesNotAnswer(t *testing.T) {
	s := newSystemd(t)
	lasting(t, &scopeCall, 2*time.Second)
	lasting(t, &scopeQuiet, 0)
	s.is("deaf")
	h := newHost(t)
	s.connect(h)
	h.start(h.params("c", sh("exit 3")))
	h.wantExit("c", 3)
	for _, peer := range []string{"shim", "logger"} {
		h.eventually("three tries", func() bool { return len(s.calls("StartTransientUnit", scopeOf(peer))) > 2 })
		if n := s.logs.count("the " + peer + " stays in the daemon's cgroup for now"); n != 1 {
			t.Errorf("the log says %d times that the %s has no scope", n, peer)
		}
	}
	if n := s.logs.count("deadline exceeded"); n != 2 {
		t.Errorf("the log has %d reasons", n)
	}
	s.isNot("deaf")
	s.waitPlaced(h, "shim", "logger")
	h.eventually("the log takes it back", func() bool { return s.logs.count("runs in box-") == 2 })
}

// TestScopesWithoutSystemd: without busctl one line is logged. If process 1 of our pid namespace is
// not systemd, our pids are not sent to systemd.
func TestScopesWithoutSystemd(t *testing.T) {
	s := newSystemd(t)
	h := newHost(t)
	h.client.Close()
	self, err := procfd.Open(os.Getpid())
	must(t, err)
	defer self.Close()
	p := newPeer("shim", Config{Scope: scopeOf}, "", "", "", "")
	logger := logrus.New()
	logger.SetOutput(&s.logs)
	ctx, cancel := context.WithTimeout(log.WithLogger(t.Context(), logrus.NewEntry(logger)), testWait)
	defer cancel()
	firstProcess(t, "cribox\n")
	p.setApart(ctx, self)
	if calls := s.calls("StartTransientUnit", "box-shim.scope"); len(calls) > 0 {
		t.Errorf("another pid namespace's systemd was asked: %v", calls)
	}
	firstProcess(t, "systemd\n")
	t.Setenv("PATH", s.dir)
	for range 2 {
		p.setApart(ctx, self)
	}
	if n := s.logs.count("the shim stays in the daemon's cgroup"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestUnitOf: in which cgroup systemd places a process, and which slice a scope for it belongs to.
func TestUnitOf(t *testing.T) {
	v1 := func(unit string) string {
		return "11:memory:/elsewhere.slice\n2:cpu,cpuacct:" + unit + "\n1:name=systemd:" + unit + "\n"
	}
	for _, c := range []struct{ name, cgroups, unit, slice string }{
		{"v2", "0::/system.slice/cribox.service\n", "/system.slice/cribox.service", "system.slice"},
		{"v1", v1("/system.slice/cribox.service"), "/system.slice/cribox.service", "system.slice"},
		{"both", v1("/system.slice/cribox.service") + "0::/init.scope\n", "/system.slice/cribox.service", "system.slice"},
		{"both, v2 first", "0::/init.scope\n" + v1("/runtime.slice/cribox.service"), "/runtime.slice/cribox.service", "runtime.slice"},
		{"a colon", "0::/system.slice/a:b.service\n", "/system.slice/a:b.service", "system.slice"},
		{"inner slice", "0::/node.slice/node-runtime.slice/cribox.service\n", "/node.slice/node-runtime.slice/cribox.service", "node-runtime.slice"},
		{"sub-cgroup", "0::/runtime.slice/cribox.service/init\n", "/runtime.slice/cribox.service/init", "runtime.slice"},
		{"shell", "0::/user.slice/user-0.slice/session-1.scope\n", "/user.slice/user-0.slice/session-1.scope", "system.slice"},
		{"root", "0::/\n", "/", "system.slice"},
		{"systemd in a container", "0::/docker/1a/system.slice/cribox.service\n", "/docker/1a/system.slice/cribox.service", "system.slice"},
		{"gone", "", "", "system.slice"},
	} {
		if unit := unitIn(c.cgroups); unit != c.unit || sliceFor(unit) != c.slice {
			t.Errorf("%s: %q in %q, want %q in %q", c.name, unit, sliceFor(unit), c.unit, c.slice)
		}
	}
	for cgroup, in := range map[string]bool{
		"/system.slice/box-shim.scope": true, "/system.slice/box-shim.scope/sub": true,
		"/system.slice/box-shim.scope.d": false, "/system.slice/cribox.service": false, "/": false, "": false,
	} {
		if isIn(cgroup, "box-shim.scope") != in {
			t.Errorf("%q in box-shim.scope: %v", cgroup, !in)
		}
	}
}
