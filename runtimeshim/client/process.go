package client

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Namespaces opens namespaces of a running task's first process; kinds are names in /proc/PID/ns.
// The namespaces are never those of a process that has reused the pid. ErrFailedPrecondition when
// the process has ended. The caller must close the files.
func (k *Client) Namespaces(id string, kinds ...string) ([]*os.File, error) {
	if err := statedir.CheckID(id); err != nil {
		return nil, err
	}
	var rec statedir.Record
	err := statedir.ReadJSON(k.state.Task(id).Record(), &rec)
	var files []*os.File
	if err == nil {
		files, err = openNamespaces(rec, kinds)
	}
	if procfd.Gone(err) || errdefs.IsNotFound(err) {
		err = fmt.Errorf("process of task %s has ended: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		unixfd.CloseAll(files)
		return nil, fmt.Errorf("namespaces of task %s: %w", id, err)
	}
	return files, nil
}

// openNamespaces is Namespaces for a record; ESRCH or ENOENT when the process has ended. The caller
// must close the files even if there is an error.
func openNamespaces(rec statedir.Record, kinds []string) (files []*os.File, err error) {
	if rec.State != runtimeshim.StateRunning {
		return nil, unix.ESRCH
	}
	handle, err := procfd.OpenSame(rec.Pid, rec.StartTicks)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	for _, kind := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", rec.Pid, kind))
		if err != nil {
			return files, errors.Join(err, procfd.StillHas(handle, rec.Pid))
		}
		files = append(files, f)
	}
	return files, procfd.StillHas(handle, rec.Pid)
}
