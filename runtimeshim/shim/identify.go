package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/procfd"
)

// Which process a number means. A number is read from a file and may be another process's by then;
// clocks are stepped, so the age of the file says nothing. What identifies a process is the time
// after boot at which it started, and the cgroup that it is in.

// errNotStarted: nothing says that the runtime brought the task up.
var errNotStarted = errors.New("it was not started")

// identify finds the process that the runtime's pid file was written for. errNotStarted: the
// runtime has written none, or it cannot be told. Another error says nothing.
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

// startOf returns the start time of the task's process of that number. os.ErrNotExist when it has
// ended, and the number is another's or nobody's.
func (a *adopter) startOf(t *task, pid int) (uint64, error) {
	st, err := procfd.ReadStat(pid)
	if err != nil {
		return 0, err
	}
	noted, err := oci.InitOf(filepath.Join(a.state.RuncRoot(), t.rec.ID, "state.json"))
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
		return 0, fmt.Errorf("process %d may be its own or not: %w", pid, errNotStarted)
	}
	in, err := a.cgroups.Contain(pid, dirs)
	if err == nil && !in {
		err = os.ErrNotExist
	}
	return st.StartTicks, err
}
