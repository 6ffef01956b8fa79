package shim

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/procfd"
)

// How a process is identified. The pid in a file may belong to another process by the time it is
// read, and the age of the file proves nothing, because clocks are stepped. What identifies a
// process is its start time since boot and its cgroup.

// errNotStarted: there is no evidence that the runtime started the task.
var errNotStarted = errors.New("the task was not started")

// identify finds the process that the runtime's pid file was written for. errNotStarted: there is
// no pid file, or it does not identify the process. Any other error says nothing.
func (a *adopter) identify(t *task) (oci.ProcID, error) {
	pid, err := oci.ReadPid(t.dir.Pid())
	if procfd.Gone(err) || errdefs.IsDataLoss(err) {
		return oci.ProcID{}, fmt.Errorf("%v: %w", err, errNotStarted)
	}
	if err != nil {
		return oci.ProcID{}, err
	}
	f, err := procfd.Open(pid)
	if procfd.Gone(err) {
		return oci.ProcID{Pid: pid}, nil
	}
	if err != nil {
		return oci.ProcID{}, err
	}
	defer f.Close()
	ticks, err := a.startOf(t, pid)
	if err == nil {
		err = procfd.StillHas(f, pid)
	}
	if procfd.Gone(err) {
		return oci.ProcID{Pid: pid}, nil
	}
	return oci.ProcID{Pid: pid, Ticks: ticks}, err
}

// startOf returns the start time of the task's process, which had this pid. os.ErrNotExist when it
// has ended and the pid is free or belongs to another process.
func (a *adopter) startOf(t *task, pid int) (uint64, error) {
	st, err := procfd.ReadStat(pid)
	if err != nil {
		return 0, err
	}
	noted, err := oci.InitOf(a.state.RuncState(t.rec.ID))
	if err != nil {
		return 0, err
	}
	if noted.Pid == pid && noted.Ticks != 0 {
		if noted.Ticks != st.StartTicks {
			return 0, os.ErrNotExist
		}
		return st.StartTicks, nil
	}
	dirs, err := a.cgroups.OfSpec(t.dir.Config())
	if err != nil {
		return 0, err
	}
	if len(dirs) == 0 {
		return 0, fmt.Errorf("cannot tell whether process %d belongs to the task: %w", pid, errNotStarted)
	}
	in, err := a.cgroups.Contain(pid, dirs)
	if err == nil && !in {
		err = os.ErrNotExist
	}
	return st.StartTicks, err
}
