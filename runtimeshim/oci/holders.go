package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Outlast waits until no process holds the lock file. After limit it kills the runtimes that still
// do.
func (d *Driver) Outlast(ctx context.Context, path string, limit time.Duration) {
	for end := time.Now().Add(limit); !unlocked(path) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end.Add(wire.KilledWait)) {
			return
		}
		if time.Now().After(end) {
			d.killHolders(path)
		}
	}
}

// unlocked reports whether nobody holds the lock file. False if it cannot be opened now.
func unlocked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(unixfd.Of(f), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// killHolders sends SIGKILL to those runtimes of ours that have path open, and to their
// descendants. It leaves other processes that may hold the file, such as the daemon.
func (d *Driver) killHolders(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", unixfd.Of(f)))
	f.Close()
	if err != nil {
		return
	}
	eachName("/proc", func(pid string) {
		if _, err := strconv.Atoi(pid); err != nil {
			return
		}
		fds := filepath.Join("/proc", pid, "fd")
		eachName(fds, func(fd string) {
			// Only the link is read, because the file may be on a disk that hangs.
			if to, err := os.Readlink(filepath.Join(fds, fd)); err == nil && to == name {
				d.killHolder(filepath.Join(fds, fd), name)
			}
		})
	})
}

// eachName calls f for each name in a folder. It reads the names in chunks: there may be a million.
func eachName(folder string, f func(name string)) {
	d, err := os.Open(folder)
	if err != nil {
		return
	}
	defer d.Close()
	for err == nil {
		var names []string
		names, err = d.Readdirnames(256)
		for _, name := range names {
			f(name)
		}
	}
}

// killHolder kills the process that fd, a link in /proc, belongs to, if it is a runtime and fd
// refers to the file name.
func (d *Driver) killHolder(fd, name string) {
	pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
	f, err := procfd.Open(pid)
	if err != nil {
		return
	}
	defer f.Close()
	to, err := os.Readlink(fd) // check again: from now on we hold a pidfd
	if err != nil || to != name || !d.IsRuntime(pid) || procfd.StillHas(f, pid) != nil {
		return
	}
	_ = procfd.Signal(f, unix.SIGSTOP)
	procfd.KillDescendants(f)
	_ = procfd.Signal(f, unix.SIGKILL)
}

// IsRuntime reports whether the process is a command of a runtime for our tasks.
func (d *Driver) IsRuntime(pid int) bool {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Contains(string(cmdline), "\x00--root\x00"+d.state.RuncRoot()+"\x00")
}

// LockShared opens a lock file with a shared lock, for the runtime to inherit. ErrUnavailable when
// another process keeps it locked exclusively for 2 seconds.
func (d *Driver) LockShared(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; {
		err := unix.Flock(unixfd.Of(f), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) || ctx.Err() != nil {
			f.Close()
			return nil, fmt.Errorf("take lock %s: %v: %w", f.Name(), err, errdefs.ErrUnavailable)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
