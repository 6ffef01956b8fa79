package runtimeshim

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNamespacesAreTheTasks: a process that has got a task's number is not the task.
func TestNamespacesAreTheTasks(t *testing.T) {
	st, err := readProcStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	rec := taskRecord{State: stateRunning, Pid: os.Getpid(), StartTicks: st.StartTicks}
	files, err := openNamespaces(rec, []string{"pid", "ipc"})
	if err != nil || len(files) != 2 {
		t.Fatalf("of the process itself: %v, %v", files, err)
	}
	closeAll(files)
	for name, other := range map[string]func(*taskRecord){
		"another start time": func(r *taskRecord) { r.StartTicks-- },
		"no process":         func(r *taskRecord) { r.Pid = 0 },
		"the first process":  func(r *taskRecord) { r.Pid = 1 },
		"not running":        func(r *taskRecord) { r.State = stateStarting },
	} {
		wrong := rec
		other(&wrong)
		if files, err := openNamespaces(wrong, []string{"pid"}); !errors.Is(err, unix.ESRCH) || len(files) > 0 {
			t.Errorf("%s: %v, %v", name, files, err)
		}
	}
}
