package procfd

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// TestChildrenOfReapedPID: a reaped process has no children, even if its pid is in use again.
func TestChildrenOfReapedPID(t *testing.T) {
	parent := exec.Command("sh", "-c", "sleep 1000000 & read x")
	in, err := parent.StdinPipe()
	must(t, err)
	must(t, parent.Start())
	f, err := Open(parent.Process.Pid)
	must(t, err)
	defer f.Close()
	var kids []*os.File
	for deadline := time.Now().Add(time.Minute); len(kids) == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond) // there is no event for a fork
		kids = childrenOf(f)
	}
	if len(kids) != 1 {
		t.Fatalf("it has %d children", len(kids))
	}
	defer unixfd.CloseAll(kids)
	in.Close()
	_ = parent.Wait()
	if left := childrenOf(f); len(left) != 0 {
		t.Errorf("children of a dead process: %d", len(left))
	}
	must(t, Signal(kids[0], unix.SIGKILL))
}

// TestOrphansAreForgotten: unclaimed exit statuses do not pile up in memory while execs overlap.
func TestOrphansAreForgotten(t *testing.T) {
	r := NewReaper()
	release := r.Hold()
	defer release()
	old := time.Now().Add(-2 * claimWait)
	for pid := range 100 * fewEarly {
		r.early[pid] = earlyEnd{unix.WaitStatus(0), old}
		r.pruneEarly()
	}
	if len(r.early) > 2*fewEarly {
		t.Errorf("%d ends are kept", len(r.early))
	}
	for pid := range 100 * fewEarly { // recent ones may still be claimed
		r.early[pid] = earlyEnd{unix.WaitStatus(0), time.Now()}
		r.pruneEarly()
	}
	if len(r.early) != 100*fewEarly {
		t.Errorf("%d ends are left of %d", len(r.early), 100*fewEarly)
	}
	clear(r.early)
	r.prune = fewEarly
	for pid := range fewEarly {
		r.early[-pid-1] = earlyEnd{unix.WaitStatus(0), old}
	}
	child := childOf(t)
	must(t, unix.Kill(child, unix.SIGKILL))
	must(t, unix.Waitid(unix.P_PID, child, nil, unix.WEXITED|unix.WNOWAIT, nil))
	for known := false; !known && r.reapOne(); {
		_, known = r.early[child]
	}
	if _, known := r.early[child]; !known || len(r.early) >= fewEarly {
		t.Errorf("reaping one more keeps %d ends, its own: %t", len(r.early), known)
	}
}

// TestClaimOfGrandchild: a process whose parent is about to end is claimed when it has become our
// child. Under load crun run --detach leaves such processes.
func TestClaimOfGrandchild(t *testing.T) {
	must(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	r := NewReaper()
	defer r.Hold()()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out, outEnd, err := os.Pipe()
	must(t, err)
	defer out.Close()
	inEnd, in, err := os.Pipe()
	must(t, err)
	defer in.Close()
	outer, err := r.Start([]string{"/bin/sh", "-c", "sh -c 'sleep 1000000 >/dev/null 3<&- & echo $!; read x <&3' &"},
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, outEnd.Fd(), 2, inEnd.Fd()}})
	must(t, err)
	defer outer.Pidfd.Close()
	outEnd.Close()
	inEnd.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	defer unix.Kill(pid, unix.SIGKILL)

	go r.Run(ctx)
	if _, reaped, err := r.tryClaim(pid); reaped == nil {
		t.Fatalf("its parent lives, and it is claimed: %v", err)
	}
	go in.Close()
	child, err := r.Claim(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer child.Pidfd.Close()
	must(t, unix.Kill(pid, unix.SIGKILL))
	if ws := <-child.Done; ws.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %v", ws)
	}
}

// TestClaimedOnce: nobody takes a process away from whoever has claimed it.
func TestClaimedOnce(t *testing.T) {
	r := NewReaper()
	child, err := r.Start([]string{"/bin/sleep", "1000000"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	must(t, err)
	defer child.Pidfd.Close()
	if _, err := r.Claim(child.Pid); !errors.Is(err, unix.EBUSY) || Gone(err) {
		t.Errorf("claimed again: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go r.Run(ctx)
	must(t, unix.Kill(child.Pid, unix.SIGKILL))
	if ws := <-child.Done; ws.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %v", ws)
	}
}

// TestOpenError: the EINVAL of older kernels for a process that is reaped means that it is gone.
func TestOpenError(t *testing.T) {
	for _, row := range []struct {
		pid       int
		err, want error
	}{
		{5, unix.EINVAL, unix.ESRCH}, {5, unix.ESRCH, unix.ESRCH}, {5, unix.EMFILE, unix.EMFILE}, {0, unix.EINVAL, unix.EINVAL}, {-1, unix.EINVAL, unix.EINVAL},
	} {
		if got := openError(row.pid, row.err); got != row.want {
			t.Errorf("process %d, %v: %v, want %v", row.pid, row.err, got, row.want)
		}
	}
}

func TestPidfdExit(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "read x; exit 9")
	in, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if pid, err := PidOf(f); pid != cmd.Process.Pid || err != nil {
		t.Errorf("pid of pidfd: %d %v", pid, err)
	}
	st, err := ReadStat(cmd.Process.Pid)
	if err != nil || st.StartTicks == 0 {
		t.Errorf("stat: %+v %v", st, err)
	}
	in.Close()
	if err := WaitDead(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	if st, err := ReadStat(cmd.Process.Pid); err != nil || st.State != 'Z' || ExitCode(st.ExitCode) != 9 {
		t.Errorf("zombie: %+v %v", st, err)
	}
	if _, ok := ExitOf(f); ok {
		t.Error("the kernel knows the exit of a zombie already")
	}
	cmd.Wait()
	ws, ok := ExitOf(f)
	if !ok {
		t.Skip("the kernel is older than 6.15")
	}
	if ExitCode(ws) != 9 {
		t.Errorf("exit code %d", ExitCode(ws))
	}
	if pid, _ := PidOf(f); pid != -1 {
		t.Errorf("pid of a reaped process: %d", pid)
	}
}

// childOf starts a process that runs, and is not reaped, until the end of the test.
func childOf(t *testing.T) int {
	t.Helper()
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "1d"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p.Pid
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
