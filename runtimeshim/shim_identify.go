package runtimeshim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Which process a number means. A number is read from a file and may be another process's by then;
// clocks are stepped, so the age of the file says nothing. What identifies a process is the time
// after boot at which it started, and the cgroup that it is in.

// errNotStarted: nothing says that the runtime brought the task up.
var errNotStarted = errors.New("it was not started")

// procID is a number with its start time; ticks is 0 of one that has ended.
type procID struct {
	pid   int
	ticks uint64
}

// identify finds the process that the runtime's pid file was written for. errNotStarted: the runtime
// has written none, or it cannot be told. Another error says nothing.
func (a *adopter) identify(t *task) (procID, error) {
	pid, err := readPid(t.dir.pid())
	if isGone(err) || errdefs.IsDataLoss(err) {
		return procID{}, fmt.Errorf("%v: %w", err, errNotStarted)
	}
	if err != nil {
		return procID{}, err
	}
	f, err := openPidfd(pid)
	if isGone(err) {
		return procID{pid: pid}, nil
	}
	if err != nil {
		return procID{}, err
	}
	defer f.Close()
	ticks, err := a.startOf(t, pid)
	if err == nil {
		err = stillHas(f, pid)
	}
	if isGone(err) {
		return procID{pid: pid}, nil
	}
	return procID{pid, ticks}, err
}

// startOf returns the start time of the task's process of that number. os.ErrNotExist when it has
// ended, and the number is another's or nobody's.
func (a *adopter) startOf(t *task, pid int) (uint64, error) {
	st, err := readProcStat(pid)
	if err != nil {
		return 0, err
	}
	noted, err := runtimeInit(filepath.Join(a.state.runcRoot(), t.rec.ID, "state.json"))
	if err != nil {
		return 0, err
	}
	if noted.pid == pid && noted.ticks != 0 {
		if noted.ticks != st.StartTicks {
			return 0, os.ErrNotExist
		}
		return st.StartTicks, nil
	}
	dirs, err := specCgroups(a.cgroups.hierarchies, t.dir.config())
	if err != nil {
		return 0, err
	}
	if len(dirs) == 0 {
		return 0, fmt.Errorf("process %d may be its own or not: %w", pid, errNotStarted)
	}
	in, err := inCgroups(a.cgroups.hierarchies, pid, dirs)
	if err == nil && !in {
		err = os.ErrNotExist
	}
	return st.StartTicks, err
}

// runtimeInit reads from runc's state file which process it has started; nothing of another runtime's.
func runtimeInit(name string) (procID, error) {
	var st struct {
		Pid   int    `json:"init_process_pid"`
		Start uint64 `json:"init_process_start"`
	}
	err := readJSON(name, &st)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		return procID{}, nil
	}
	return procID{st.Pid, st.Start}, err
}
