package sandbox

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
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Every network plugin and every runtime process of a pod inherits the pod's locked file. A daemon that was killed leaves such processes
// behind; before their pod is torn down they are waited for and then ended, or a plugin that is still busy would take an address after it
// was given back.

const lockGrace = 5 * time.Second // for a plugin or runtime that nobody waits for any more

var lockLimit = 10 * time.Second // tests shorten it

func (m *Manager) lockPath(id string) string { return m.statePath("locks", id) }

// podLock opens the pod's lock file with a shared lock, to be inherited by a child process. Another teardown of the pod that finds nobody
// left holds it alone for a moment, which is waited for. ErrUnavailable when that takes longer than lockLimit.
func (m *Manager) podLock(ctx context.Context, id string) (*os.File, error) {
	f, err := os.OpenFile(m.lockPath(id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) && time.Since(start) > lockLimit {
			err = fmt.Errorf("somebody else holds it: %w", errdefs.ErrUnavailable)
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

// quiesce returns when no plugin or runtime process of the pod is left: it gives them a grace and then kills them.
func (m *Manager) quiesce(ctx context.Context, id string) error {
	f, err := os.OpenFile(m.lockPath(id), os.O_RDWR, 0)
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
			killHolders(ctx, m.lockPath(id))
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

func (m *Manager) dropLock(id string) error {
	if err := os.Remove(m.lockPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// killHolders ends every process that has path open, except cribox's own: daemon and shim open it for the moment of starting a child.
func killHolders(ctx context.Context, path string) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return
	}
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != path {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			continue
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || strings.TrimSuffix(exe, " (deleted)") == strings.TrimSuffix(own, " (deleted)") {
			continue
		}
		log.G(ctx).WithField("pid", pid).Warn("ending a plugin or runtime process that outlived its request")
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			log.G(ctx).WithError(err).Warn("cannot end it")
		}
	}
}
