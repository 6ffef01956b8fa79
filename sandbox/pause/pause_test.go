package pause

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const deadline = 20 * time.Second

// install writes the program under a name that is not its own, so that the
// name it gives itself tells when it is ready.
func install(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "installed")
	if err := os.WriteFile(path, Binary(), 0o555); err != nil {
		t.Fatal(err)
	}
	// The test's folder is closed to others; the program may run as another user.
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// start runs the program with attr and waits until it has settled.
func start(t *testing.T, attr *syscall.SysProcAttr, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(install(t))
	cmd.SysProcAttr = attr
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Whoever waits for it does not wait for ever.
	late := time.AfterFunc(deadline, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	await(t, "the program to call itself pause", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return string(comm) == "pause\n"
	})
	return cmd
}

// await looks until it is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !so(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestLeavesWithZero(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		for name, attr := range map[string]*syscall.SysProcAttr{
			"as any process": {},
			"as pid 1":       {Cloneflags: syscall.CLONE_NEWPID},
		} {
			t.Run(fmt.Sprintf("%s %s", sig, name), func(t *testing.T) {
				if attr.Cloneflags != 0 {
					needRoot(t)
				}
				cmd := start(t, attr)
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err != nil {
					t.Fatalf("after %s: %v, want exit code 0", sig, err)
				}
			})
		}
	}
}

// TestOtherSignalsStillKill: what it does not wait for keeps its default action.
func TestOtherSignalsStillKill(t *testing.T) {
	handled := make(chan os.Signal, 1) // so that it is not ignored, as it would be below nohup
	signal.Notify(handled, syscall.SIGHUP)
	defer signal.Stop(handled)
	cmd := start(t, &syscall.SysProcAttr{})
	_ = cmd.Process.Signal(syscall.SIGHUP)
	err := cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || ws.Signal() != syscall.SIGHUP {
		t.Fatalf("after SIGHUP: %v", err)
	}
}

// TestReapsEveryOrphan: forty processes become orphans, then die at once.
func TestReapsEveryOrphan(t *testing.T) {
	needRoot(t)
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		t.Skip("needs nsenter")
	}
	const orphans = 40
	cmd := start(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	parent := exec.Command(nsenter, fmt.Sprintf("--pid=/proc/%d/ns/pid", cmd.Process.Pid),
		"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do { read x; exit 7; } <&3 & i=$((i+1)); done", orphans))
	parent.ExtraFiles = []*os.File{r}
	// Its output is nobody's: the orphans hold it open.
	if err := parent.Run(); err != nil {
		t.Fatal(err)
	}
	r.Close()

	pids := children(t, cmd.Process.Pid)
	if len(pids) != orphans {
		t.Fatalf("pause has %d children, want %d", len(pids), orphans)
	}
	w.Close() // end of file: they leave
	await(t, "all orphans to be reaped", func() bool {
		for _, pid := range pids {
			if unix.Kill(pid, 0) == nil {
				return false
			}
		}
		return true
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func children(t *testing.T, pid int) []int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Skipf("kernel without lists of children: %v", err)
	}
	var pids []int
	for _, f := range strings.Fields(string(data)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, n)
	}
	return pids
}

// TestGuardsItsDescriptors: a process of the same user cannot look at them,
// and what is in flight in descriptor 3 lives as long as pause does.
func TestGuardsItsDescriptors(t *testing.T) {
	needRoot(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := pair[0], os.NewFile(uintptr(pair[1]), "keeper")
	user := &syscall.Credential{Uid: 65535, Gid: 65535}
	cmd := start(t, &syscall.SysProcAttr{Credential: user}, theirs)
	theirs.Close()
	defer unix.Close(ours)

	spy := exec.Command("readlink", fmt.Sprintf("/proc/%d/fd/3", cmd.Process.Pid))
	spy.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if out, err := spy.CombinedOutput(); err == nil {
		t.Errorf("another process of its user reads its descriptor: %s", out)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid), &st); err != nil || st.Uid != 0 {
		t.Errorf("its /proc entries belong to user %d (%v), want 0: it is dumpable", st.Uid, err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := unix.Sendmsg(ours, []byte("id"), unix.UnixRights(int(w.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	poll := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
		t.Fatalf("the descriptor in flight is gone although pause lives: %d, %v", n, err)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if n, err := unix.Poll(poll, int(deadline.Milliseconds())); n != 1 || err != nil {
		t.Fatalf("the descriptor in flight outlives pause: %d, %v", n, err)
	}
}

func TestIsSmall(t *testing.T) {
	if len(Binary()) > 4096 {
		t.Errorf("pause is %d bytes, want one page", len(Binary()))
	}
	b := Binary()
	b[0] = 0
	if Binary()[0] != 0x7f {
		t.Error("callers share the bytes")
	}
}

// TestBytesMatchSource rebuilds and compares, where the compiler is the one
// the committed bytes come from.
func TestBytesMatchSource(t *testing.T) {
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("needs a C compiler")
	}
	out, err := exec.Command("./build.sh", "--check").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// TestMemory reports what a pause process costs.
func TestMemory(t *testing.T) {
	cmd := start(t, &syscall.SysProcAttr{})
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", cmd.Process.Pid))
	if err != nil {
		t.Skip(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(line, "Pss:") {
			t.Log(line)
			var kib int
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err != nil || kib > 32 {
				t.Errorf("PSS %d KiB (%v), want at most 32", kib, err)
			}
		}
	}
}
