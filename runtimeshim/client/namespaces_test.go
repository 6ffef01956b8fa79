package client

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// TestNamespacesAreTheTasks: a process that has got a task's number is not the task.
func TestNamespacesAreTheTasks(t *testing.T) {
	st, err := procfd.ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	rec := statedir.Record{State: runtimeshim.StateRunning, Pid: os.Getpid(), StartTicks: st.StartTicks}
	files, err := openNamespaces(rec, []string{"pid", "ipc"})
	if err != nil || len(files) != 2 {
		t.Fatalf("of the process itself: %v, %v", files, err)
	}
	unixfd.CloseAll(files)
	for name, other := range map[string]func(*statedir.Record){
		"another start time": func(r *statedir.Record) { r.StartTicks-- },
		"no process":         func(r *statedir.Record) { r.Pid = 0 },
		"the first process":  func(r *statedir.Record) { r.Pid = 1 },
		"not running":        func(r *statedir.Record) { r.State = runtimeshim.StateStarting },
	} {
		wrong := rec
		other(&wrong)
		if files, err := openNamespaces(wrong, []string{"pid"}); !errors.Is(err, unix.ESRCH) || len(files) > 0 {
			t.Errorf("%s: %v, %v", name, files, err)
		}
	}
}
