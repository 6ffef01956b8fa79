package shim

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// TestUnreadableOOMCounter: an OOM kill is reported even if the shim has no free descriptor for a
// moment when the task ends.
func TestUnreadableOOMCounter(t *testing.T) {
	w, err := cgroup.NewCounterWatch(cgroup.ParseOOMKills)
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	w.ReadFile = func(string) ([]byte, error) {
		if looks++; looks < 3 {
			return nil, unix.EMFILE
		}
		return []byte("oom_kill 1\n"), nil
	}
	s := partsOf("/x")
	s.reporter.kills = w
	task := newTask(statedir.Task(t.TempDir()), statedir.Record{Params: statedir.Params{OOMFile: "/sys/fs/cgroup/x/memory.oom_control"}})
	s.reporter.ended(task, statedir.ExitRecord{Code: 137, Known: true})
	if task.exit == nil || !task.exit.OOM {
		t.Errorf("the end is told as %+v, want a kill by the kernel", task.exit)
	}
}

// TestMarkOOM: a SIGKILL of ours discounts earlier OOM kills, also for a later shim, except when
// the kernel has just killed the task's own process.
func TestMarkOOM(t *testing.T) {
	s := partsOf("/x")
	for name, row := range map[string]struct {
		before bool // it gets a SIGKILL that is not ours
		want   uint64
	}{"alive": {false, 5}, "hit": {true, 2}} {
		child := newChild(t)
		d := statedir.Task(t.TempDir())
		file := d.At("events")
		if err := os.WriteFile(file, []byte("oom_kill 5\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if row.before {
			if err := unix.Kill(child, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		pidfd, err := procfd.Open(child)
		if err != nil {
			t.Fatal(err)
		}
		defer pidfd.Close()
		task := newTask(d, statedir.Record{Params: statedir.Params{OOMFile: file}, OOMBase: 2})
		task.pidfd = pidfd
		s.reporter.markOOM(task)
		next, err := oomBase(statedir.Record{OOMBase: 2}, d)
		if err != nil || task.rec.OOMBase != row.want || next != row.want {
			t.Errorf("%s: the count begins at %d, and for the next shim at %d (%v); want %d", name, task.rec.OOMBase, next, err, row.want)
		}
	}
}

// newChild starts a process that runs, and is not reaped, until the end of the test.
func newChild(t *testing.T) int {
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
