package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Every network plugin and every runtime process of a pod inherits the pod's locked file. A daemon
// that was killed leaves such processes behind; before their pod is torn down they are waited for
// and then ended, or a plugin that is still busy would take an address after it was given back.

const lockGrace = 5 * time.Second // for a plugin or runtime that nobody waits for any more

var lockLimit = 10 * time.Second // tests shorten it

// podLock opens the pod's lock file with a shared lock, to be inherited by a child process. Another
// teardown of the pod that finds nobody left holds it alone for a moment, which is waited for.
// ErrUnavailable when that takes longer than lockLimit.
func (c *Connector) podLock(ctx context.Context, id string) (*os.File, error) {
	f, err := os.OpenFile(c.layout.LockPath(id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) && time.Since(start) > lockLimit {
			err = fmt.Errorf("another process holds it: %w", errdefs.ErrUnavailable)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock of pod %s: %w", id, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for the lock of pod %s: %w", id, ctx.Err()), f.Close())
		case <-time.After(time.Millisecond):
		}
	}
}

// Quiesce returns when no plugin or runtime process of the pod is left: it gives them a grace and
// then kills them.
func (c *Connector) Quiesce(ctx context.Context, id string) error {
	f, err := os.OpenFile(c.layout.LockPath(id), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	start := time.Now()
	kill := start.Add(lockGrace)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock of pod %s: %w", id, err)
		}
		if time.Now().After(kill) {
			c.killHolders(ctx, id)
			kill = time.Now().Add(time.Second)
		}
		if time.Since(start) > lockLimit {
			return fmt.Errorf("a plugin or runtime process of pod %s cannot be ended", id)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Connector) DropLock(id string) error {
	if err := os.Remove(c.layout.LockPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// killHolders ends every process that has the pod's lock file open, except cribox's own: daemon and
// shim open it for the moment of starting a child. When it cannot be told which process is the
// shim, nobody is ended.
func (c *Connector) killHolders(ctx context.Context, id string) {
	ours, err := c.ourProcesses(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot look for plugin and runtime processes that outlived their request; " +
			"leaving them alone for now")
		return
	}
	lock, err := os.Stat(c.layout.LockPath(id))
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot find out which process holds the lock of the pod")
		return
	}
	for _, pid := range numbersIn("/proc") {
		if ctx.Err() != nil {
			return
		}
		if err := endHolder(ctx, pid, c.layout.LockPath(id), lock, ours); err != nil && !errors.Is(err, unix.ESRCH) &&
			!errors.Is(err, os.ErrNotExist) {
			log.G(ctx).WithField("pid", pid).WithError(err).Warn("cannot end a process that holds the lock of the pod")
		}
	}
}

// family is what cribox itself consists of: the daemon, shim and logger, and the programs that they
// execute. A child of one of them has the same program, and all of its descriptors, until it
// executes another.
type family struct {
	pids     []int
	programs []os.FileInfo
}

func (c *Connector) ourProcesses(ctx context.Context) (f family, err error) {
	if f.pids, err = c.peers(ctx); err != nil {
		return f, err
	}
	f.pids = append(f.pids, os.Getpid())
	for _, pid := range f.pids {
		program, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended since
		}
		if err != nil {
			return f, err
		}
		f.programs = append(f.programs, program)
	}
	return f, nil
}

func (f family) has(pid int, program os.FileInfo) bool {
	return slices.Contains(f.pids, pid) || slices.ContainsFunc(f.programs,
		func(own os.FileInfo) bool { return os.SameFile(own, program) })
}

// endHolder kills the process if it has the file open and is none of ours. The handle comes first:
// what is found out by the number afterwards is true of the process behind the handle, or that one
// is gone and gets no signal.
func endHolder(ctx context.Context, pid int, name string, lock os.FileInfo, ours family) error {
	if !holds(pid, name, lock) {
		return nil
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.EINVAL) { // Linux 6.1, of a process that is gone while its session or group is not
		err = unix.ESRCH
	}
	if err != nil {
		return err
	}
	defer unix.Close(handle)
	program, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return err
	}
	if ours.has(pid, program) || !holds(pid, name, lock) {
		return nil
	}
	log.G(ctx).WithField("pid", pid).Warn("ending a plugin or runtime process that outlived its request")
	return unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0)
}

// holds says whether the process has the file open. Only what has its name is looked at: the file
// system of any other may be one that hangs.
func holds(pid int, name string, file os.FileInfo) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	for _, fd := range numbersIn(dir) {
		path := filepath.Join(dir, strconv.Itoa(fd))
		if to, err := os.Readlink(path); err != nil || to != name {
			continue
		}
		if open, err := os.Stat(path); err == nil && os.SameFile(open, file) {
			return true
		}
	}
	return false
}

// numbersIn returns the names in a folder of /proc that are numbers; none when the process is gone.
func numbersIn(dir string) (all []int) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	return all
}
