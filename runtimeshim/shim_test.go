package runtimeshim

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The shim has one place that waits for processes. Another one takes statuses
// away from it, and it from the other.
func TestNobodyElseWaitsInTheShim(t *testing.T) {
	files, _ := filepath.Glob("shim*.go")
	files = append(files, "cgroup.go", "pidfd.go")
	forbidden := regexp.MustCompile(`"os/exec"|exec\.Command|os\.StartProcess|os\.FindProcess|\.Wait\(|\.Run\(|\.Output\(|\.CombinedOutput\(|Wait4\(|Waitid\(`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(raw), "\n") {
			allowed := name == "shim_reap.go" && (strings.Contains(line, "unix.Wait4(-1, ") || strings.Contains(line, "unix.Waitid(unix.P_PIDFD, fdOf(pidfd), nil, ask"))
			if code, _, _ := strings.Cut(line, "//"); forbidden.MatchString(code) && !allowed {
				t.Errorf("%s:%d: %s", name, i+1, line)
			}
		}
	}
}

// The shim stays on every node for ever: what it imports is paid in memory.
func TestImportsAreLight(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skip("no go command")
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{"google.golang.org/", "k8s.io/", "net/http", "github.com/containerd/containerd/"} {
			if strings.HasPrefix(pkg, heavy) {
				t.Errorf("imports %s", pkg)
			}
		}
	}
}

func TestKeeper(t *testing.T) {
	d := taskDir(filepath.Join(t.TempDir(), strings.Repeat("a-long-name", 12))) // longer than sun_path
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		t.Fatal(err)
	}
	k, err := newKeeper(d)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	const n = 60
	var writers []*os.File
	var items []kept
	for i := range n {
		r, w, _ := os.Pipe()
		it := kept{keptHead: keptHead{ID: fmt.Sprint(i)}}
		it.add("pipe", r)
		items, writers = append(items, it), append(writers, w)
	}
	for range 3 {
		if err := k.keep(items); err != nil {
			t.Fatal(err)
		}
	}
	for _, it := range items {
		closeAll(it.files)
	}
	for i, w := range writers {
		if _, err := fmt.Fprint(w, i); err != nil {
			t.Fatal(err) // somebody still has the reading end
		}
	}
	again := &keeper{sock: k.sock, path: k.path}
	var seen []kept
	for range 2 { // a recall leaves all in place
		for _, it := range seen {
			closeAll(it.files)
		}
		seen = recalled(t, again)
		if len(seen) != n || again.queued != n {
			t.Fatalf("recalled %d of %d", len(seen), n)
		}
		for i, it := range seen {
			f := it.take("pipe")
			if it.ID != fmt.Sprint(i) || f == nil || it.take("tty") != nil {
				t.Fatalf("%+v", it)
			}
			seen[i].files = []*os.File{f}
		}
	}
	if err := again.keep(seen[:1]); err != nil {
		t.Fatal(err)
	}
	for _, it := range seen {
		buf := make([]byte, 8)
		n, _ := it.files[0].Read(buf)
		if string(buf[:n]) != it.ID {
			t.Errorf("read %q of %s", buf[:n], it.ID)
		}
		closeAll(it.files)
	}
	writers[0].WriteString("x")
	unix.Sendto(k.sock, []byte("junk"), 0, mustSockname(t, k))
	if got := recalled(t, again); len(got) != 1 || again.queued != 2 {
		t.Errorf("recalled %d of %d", len(got), again.queued)
	} else {
		closeAll(got[0].files)
	}
	if err := again.keep(nil); err != nil || len(recalled(t, again)) != 0 {
		t.Errorf("something is kept: %v", err)
	}
	if _, err := writers[0].WriteString("x"); err == nil {
		t.Error("a descriptor that is not kept is open")
	}
	closeAll(writers)
}

func recalled(t *testing.T, k *keeper) []kept {
	t.Helper()
	all, err := k.recall()
	must(t, err)
	return all
}

func mustSockname(t *testing.T, k *keeper) (a unix.Sockaddr) {
	t.Helper()
	if err := k.withAddr(func(addr unix.Sockaddr) error { a = addr; return nil }); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(filepath.Dir(k.path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dir) })
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(k.path))}
}

func TestPidfdExit(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "read x; exit 9")
	in, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := openPidfd(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if pid, err := pidfdPid(f); pid != cmd.Process.Pid || err != nil {
		t.Errorf("pid of pidfd: %d %v", pid, err)
	}
	st, err := readProcStat(cmd.Process.Pid)
	if err != nil || st.StartTicks == 0 {
		t.Errorf("stat: %+v %v", st, err)
	}
	in.Close()
	if err := waitDead(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	if st, err := readProcStat(cmd.Process.Pid); err != nil || st.State != 'Z' || exitCode(st.ExitCode) != 9 {
		t.Errorf("zombie: %+v %v", st, err)
	}
	if _, ok := pidfdExit(f); ok {
		t.Error("the kernel knows the exit of a zombie already")
	}
	cmd.Wait()
	ws, ok := pidfdExit(f)
	if !ok {
		t.Skip("the kernel is older than 6.15")
	}
	if exitCode(ws) != 9 {
		t.Errorf("exit code %d", exitCode(ws))
	}
	if pid, _ := pidfdPid(f); pid != -1 {
		t.Errorf("pid of a reaped process: %d", pid)
	}
}

func TestLastLogError(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"": "",
		`{"level":"warning","msg":"a"}` + "\n" + `{"level":"error","msg":"b"}` + "\n" + `{"level":"info","msg":"c"}` + "\n": "b",
		"panic: oh\n\ngoroutine 1\n":                                    "panic: oh",
		strings.Repeat("x", 100000):                                     strings.Repeat("x", 4096),
		strings.Repeat("{}\n", 50000) + `{"level":"error","msg":"end"}`: "end",
	} {
		os.WriteFile(name, []byte(text), 0o600)
		if got := lastLogError(name); got != want {
			t.Errorf("got %.60q (%d), want %.60q", got, len(got), want)
		}
	}
	if got := lastLogError(name + "x"); got != "" {
		t.Errorf("no log: %q", got)
	}
}

// TestForeignCgroups: what a task is said to be in is killed with it, but never where the shim is, nor where it was born.
func TestForeignCgroups(t *testing.T) {
	all := cgroupMounts()
	if len(all) == 0 {
		t.Skip("no cgroups")
	}
	g := &cgroups{hierarchies: all, born: []string{"/sys/fs/cgroup/system.slice/cribox.service"}}
	now, err := processCgroups(all, os.Getpid())
	must(t, err)
	dirs := append(slices.Clone(now), g.born[0], all[0].mount, "/sys/fs/cgroup/pod/task")
	if got, err := g.foreign(dirs); err != nil || !slices.Equal(got, []string{"/sys/fs/cgroup/pod/task"}) {
		t.Errorf("may be killed: %v", got)
	}
}

// partsOf are the parts of a shim that serves nobody.
func partsOf(state string) *shim {
	e := env{stateDir(state), func(string) {}}
	return assemble(&cgroups{env: e}, &driver{env: e, reaper: newReaper()}, nil)
}
