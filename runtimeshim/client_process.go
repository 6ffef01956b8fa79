package runtimeshim

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Namespaces opens namespaces of a running task's first process, by the names that /proc/PID/ns has
// for them. They are the task's, never those of a process that has got its number since.
// ErrFailedPrecondition when that process has ended. The caller closes the files.
func (k *Client) Namespaces(id string, kinds ...string) ([]*os.File, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	var rec taskRecord
	err := readJSON(k.state.task(id).record(), &rec)
	var files []*os.File
	if err == nil {
		files, err = openNamespaces(rec, kinds)
	}
	if isGone(err) || errdefs.IsNotFound(err) {
		err = fmt.Errorf("process of task %s has ended: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		closeAll(files)
		return nil, fmt.Errorf("namespaces of task %s: %w", id, err)
	}
	return files, nil
}

// openNamespaces is Namespaces of a record; ESRCH or ENOENT when the process has ended. What it
// returns beside an error is the caller's to close too.
func openNamespaces(rec taskRecord, kinds []string) (files []*os.File, err error) {
	if rec.State != stateRunning {
		return nil, unix.ESRCH
	}
	handle, err := openSame(rec.Pid, rec.StartTicks)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	for _, kind := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", rec.Pid, kind))
		if err != nil {
			return files, errors.Join(err, stillHas(handle, rec.Pid))
		}
		files = append(files, f)
	}
	return files, stillHas(handle, rec.Pid)
}
