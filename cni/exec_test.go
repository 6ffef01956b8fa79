package cni

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/program"
)

func fakeHost(t *testing.T, change ...func(*Config)) (*host, *fake) {
	t.Helper()
	h := newHost(t, change...)
	h.conf("10-x.conflist", list("x", "fakenet"))
	return h, h.fake("fakenet", "", "")
}

// hanging returns a script for a plugin that writes pids to a FIFO and then hangs, with children in
// its process group, outside of it, and one without its environment.
func hanging(t *testing.T, f *fake) (fifo string, add string) {
	t.Helper()
	fifo = filepath.Join(f.dir, "begun")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return fifo, fakeLease + `sleep 1000 & A=$!
setsid sleep 1001 & B=$!
setsid sh -c 'trap "" HUP TERM; sleep 1002; sleep 1003' & C=$!
env -i sleep 1004 & E=$!
echo "$$ $A $B $C $E" > $D/begun
wait`
}

func readPids(t *testing.T, fifo string) []int {
	t.Helper()
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, field := range strings.Fields(line) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestAddCancelled: an ADD that hangs is killed, with everything it started, when the caller
// cancels, and is undone.
func TestAddCancelled(t *testing.T) {
	h, f := fakeHost(t)
	fifo, add := hanging(t, f)
	f.behave(add, "")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	p := h.pod("p1")
	go func() { _, err := h.n.Setup(ctx, p); failed <- err }()
	pids := readPids(t, fifo)
	cancel()
	err := <-failed
	wantErr(t, err, context.Canceled, "network x", "killed")
	for _, pid := range pids {
		gone(t, pid)
	}
	f.wantLeases(0)
	if f.calls("DEL") != 1 || len(h.n.Debts()) != 0 {
		t.Fatalf("calls %s debts %v", f.read("calls"), h.n.Debts())
	}
}

func TestAddDeadline(t *testing.T) {
	h, f := fakeHost(t, func(c *Config) { c.Timeout = 3 * time.Second })
	f.behave(fakeLease+"sleep 1000", "")
	p := h.pod("p1")
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, context.DeadlineExceeded)
	if f.calls("DEL") != 1 {
		t.Fatalf("calls: %s", f.read("calls"))
	}
	f.behave("", "sleep 1000")
	h.setup(p)
	wantErr(t, h.n.Teardown(t.Context(), p), context.DeadlineExceeded)
	if d := h.n.Debts(); len(d) != 1 {
		t.Fatalf("debts %v", d)
	}
	f.behave("", "")
	h.teardown(p)
	f.wantLeases(0)
}

// TestHangAffectsOnePod: other pods are connected while the plugin of one hangs.
func TestHangAffectsOnePod(t *testing.T) {
	h, f := fakeHost(t)
	fifo, add := hanging(t, f)
	f.behave(`if [ $CNI_CONTAINERID = slow ]; then `+add+`; fi; `+fakeLease+fakeResult, "")
	ctx, cancel := context.WithCancel(t.Context())
	slow, quick := h.pod("slow"), h.pod("quick")
	failed := make(chan error, 1)
	go func() { _, err := h.n.Setup(ctx, slow); failed <- err }()
	readPids(t, fifo)
	h.setup(quick)
	h.teardown(quick)
	// A second call for the slow pod waits its turn, but not longer than its own context.
	short, done := context.WithCancel(t.Context())
	done()
	wantErr(t, h.n.Teardown(short, slow), context.Canceled)
	cancel()
	<-failed
	f.wantLeases(0)
}

func TestHostileAdd(t *testing.T) {
	tests := map[string]struct {
		add   string
		class error
		says  string
	}{
		"garbage":            {`echo '{"ips": [garb'`, nil, "invalid character"},
		"null":               {`echo null`, nil, "address"},
		"nothing":            {`true`, nil, "unexpected end"},
		"2 MiB":              {`head -c 2097152 /dev/zero; sleep 1000`, nil, "more than 1048576 bytes"},
		"endless":            {`cat /dev/zero`, nil, "more than 1048576 bytes"},
		"not UTF-8":          {`printf '\377\376{'`, nil, "invalid character"},
		"error and exit 0":   {`echo '{"cniVersion":"1.0.0","code":7,"msg":"no free addresses"}'`, nil, "no free addresses (code 7)"},
		"error and exit 1":   {`echo '{"cniVersion":"1.0.0","code":100,"msg":"broken","details":"in two"}'; exit 1`, nil, "exit status 1: broken (code 100); in two"},
		"try again":          {`echo '{"cniVersion":"1.0.0","code":11,"msg":"later"}'; exit 1`, errdefs.ErrUnavailable, "later"},
		"stderr flood":       {`head -c 3000000 /dev/zero | tr '\0' x >&2; echo the end >&2; exit 3`, nil, "exit status 3: xxx"},
		"killed":             {`kill -9 $$`, nil, "signal: killed"},
		"no address":         {`echo '{"cniVersion":"1.0.0","ips":[]}'`, nil, "address"},
		"bad address":        {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.299/24"}]}'`, nil, "10.9.0.299"},
		"multicast":          {`echo '{"cniVersion":"1.0.0","ips":[{"address":"224.0.0.1/24"}]}'`, nil, "not an address for a pod"},
		"unspecified":        {`echo '{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}'`, nil, "not an address for a pod"},
		"host's address":     {`echo '{"cniVersion":"1.0.0","interfaces":[{"name":"br0"}],"ips":[{"interface":0,"address":"10.9.0.2/24"}]}'`, nil, "address"},
		"unknown version":    {`echo '{"cniVersion":"9.9.9","ips":[{"address":"10.9.0.2/24"}]}'`, nil, "9.9.9"},
		"output held open":   {`setsid sleep 1000 & ` + fakeResult, nil, "keeps its output open"},
		"stray, then failed": {`setsid sleep 1000 >/dev/null 2>&1 & echo no >&2; exit 1`, nil, "exit status 1: no"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, f := fakeHost(t)
			f.behave(fakeLease+tt.add, "")
			p := h.pod("p1")
			_, err := h.n.Setup(t.Context(), p)
			wantErr(t, err, tt.class, tt.says)
			if len(err.Error()) > 3*(4<<10) {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			f.wantLeases(0)
			if f.calls("DEL") != 1 || len(h.n.Debts()) != 0 {
				t.Fatalf("calls %s debts %v", f.read("calls"), h.n.Debts())
			}
			if left := holders(t, f.dir); left != "" {
				t.Fatalf("left running: %s", left)
			}
		})
	}
}

// holders lists processes that a plugin of this test has started: they have its folder in their
// environment.
func holders(t *testing.T, dir string) (found string) {
	t.Helper()
	bin := filepath.Join(filepath.Dir(dir), "bin")
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range procs {
		env, _ := os.ReadFile(path)
		if strings.Contains(string(env), "CRIBOX_CNI_CALL=") && strings.Contains(string(env), "CNI_PATH="+bin) {
			comm, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
			found += filepath.Dir(path) + " " + string(comm)
		}
	}
	return found
}

// TestOddResults: unusual but valid results are accepted.
func TestOddResults(t *testing.T) {
	tests := map[string]struct{ out, want string }{
		"IPv6 only":  {`{"cniVersion":"1.0.0","ips":[{"address":"fd00::2/64"}]}`, "[fd00::2]"},
		"dual":       {`{"cniVersion":"1.0.0","ips":[{"address":"fd00::2/64"},{"address":"10.9.0.2/24"}]}`, "[fd00::2 10.9.0.2]"},
		"twice":      {`{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.2/24"},{"address":"10.9.0.2/24"}]}`, "[10.9.0.2]"},
		"no version": {`{"ips":[{"address":"10.9.0.2/24"}]}`, "[10.9.0.2]"},
		"0.4.0":      {`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.9.0.2/24"}]}`, "[10.9.0.2]"},
		"interfaces": {`{"cniVersion":"1.0.0","interfaces":[{"name":"v"},{"name":"eth0","sandbox":"/x"},{"name":"net1","sandbox":"/x"}],` +
			`"ips":[{"interface":2,"address":"10.8.0.2/24"},{"interface":1,"address":"10.9.0.2/24"}]}`, "[10.9.0.2]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h, f := fakeHost(t)
			f.behave("echo '"+tt.out+"'", "")
			p := h.pod("p1")
			if got := fmt.Sprint(h.setup(p).IPs); got != tt.want {
				t.Fatalf("addresses %s, want %s", got, tt.want)
			}
			h.teardown(p)
		})
	}
}

// TestPluginEnvironment: a plugin gets CNI's variables and a fixed PATH, and nothing of the
// daemon's environment.
func TestPluginEnvironment(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("CNI_SURPRISE", "yes")
	t.Setenv("CNI_IFNAME", "wrong0")
	h, f := fakeHost(t)
	p := h.pod("p1")
	h.setup(p)
	want := map[string]string{
		"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "p1", "CNI_NETNS": p.NetNS, "CNI_IFNAME": "eth0", "CNI_PATH": h.c.BinDirs[0],
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=uid-p1",
		"PATH":     program.ToolPath, "HOME": "/root", "LANG": "C",
	}
	for line := range strings.Lines(f.read("env.ADD")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		// Set by the shell, and our mark.
		case "PWD", "_", "OLDPWD", "SHLVL", "CRIBOX_CNI_CALL":
			continue
		}
		if value != want[key] {
			t.Errorf("%s=%q, want %q", key, value, want[key])
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	h.teardown(p)
}

// TestLockIsInherited: processes that a plugin starts hold the pod's lock until they end.
func TestLockIsInherited(t *testing.T) {
	h, f := fakeHost(t)
	f.behave(fakeLease+`sh -c 'sh -c "readlink /proc/self/fd/3"' > $D/lock; `+fakeResult, "")
	p := h.pod("p1")
	lock, err := os.OpenFile(filepath.Join(t.TempDir(), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	p.Lock = lock
	h.setup(p)
	if got := strings.TrimSpace(f.read("lock")); got != lock.Name() {
		t.Fatalf("descriptor 3 of a grandchild is %q", got)
	}
	h.teardown(p)
}

func TestPluginNames(t *testing.T) {
	dir := t.TempDir()
	writeTestFile(t, filepath.Join(dir, "bin", "good"), "", 0o755)
	writeTestFile(t, filepath.Join(dir, "bin", "plain"), "", 0o644)
	writeTestFile(t, filepath.Join(dir, "evil"), "", 0o755)
	if _, err := program.Find("good", []string{filepath.Join(dir, "none"), filepath.Join(dir, "bin")}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "../evil", "good/../../evil", "/bin/sh", "a..b", "-x", "bad name", "a\x00b", "plain", strings.Repeat("x", 65)} {
		if path, err := program.Find(name, []string{filepath.Join(dir, "bin")}); err == nil {
			t.Errorf("%q found at %s", name, path)
		}
	}
}

// TestBusyPlugin: a plugin file that an installer is still writing cannot be executed for a moment;
// that is retried.
func TestBusyPlugin(t *testing.T) {
	h, f := fakeHost(t)
	w, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := h.pod("p1")
	cancel()
	if _, err := h.n.Setup(ctx, p); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	closed := time.AfterFunc(200*time.Millisecond, func() { w.Close() })
	defer closed.Stop()
	h.setup(p)
	h.teardown(p)
}
