package procfd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Reaper is the only place of the shim that waits for processes. It reaps
// every child, its own and those it inherits as subreaper, and hands each
// status to whoever claimed the pid. Statuses of pids that nobody has claimed
// yet are kept while somebody is about to claim one (hold), because a process
// may end before the runtime has told its pid.
type Reaper struct {
	mu      sync.Mutex
	claimed map[int]chan unix.WaitStatus
	early   map[int]earlyEnd
	holds   int
	prune   int // at so many of early those go that nobody can be about to claim
}

// earlyEnd is the status of a process that nobody had claimed when it was reaped.
type earlyEnd struct {
	ws unix.WaitStatus
	at time.Time
}

// A container in the host's pid namespace leaves its orphans to us, any number of them.
const fewEarly = 256

// claimWait is longer than any hold waits for the number of its process.
const claimWait = 3 * time.Minute

// NewReaper returns a reaper that reaps once Run is called.
func NewReaper() *Reaper {
	return &Reaper{claimed: map[int]chan unix.WaitStatus{}, early: map[int]earlyEnd{}, prune: fewEarly}
}

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGCHLD)
	defer signal.Stop(sig)
	for {
		for r.reapOne() {
		}
		select {
		case <-ctx.Done():
			return
		case <-sig:
		}
	}
}

// reapOne takes one dead child. It holds the lock over wait4, so that under
// the lock a process either still is a zombie or has its status recorded.
func (r *Reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws unix.WaitStatus
	pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if done, ok := r.claimed[pid]; ok {
		delete(r.claimed, pid)
		done <- ws
	} else if r.holds > 0 {
		r.early[pid] = earlyEnd{ws, time.Now()}
		r.pruneEarly()
	}
	return true
}

// pruneEarly forgets what is too old to be claimed, when there is much.
func (r *Reaper) pruneEarly() {
	if len(r.early) < r.prune {
		return
	}
	maps.DeleteFunc(r.early, func(_ int, e earlyEnd) bool { return time.Since(e.at) > claimWait })
	r.prune = max(fewEarly, 2*len(r.early))
}

// Hold keeps unclaimed statuses until release is called.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.holds--; r.holds == 0 {
			clear(r.early)
		}
	})
}

// Child is a process whose status the reaper will deliver.
type Child struct {
	Pid   int
	Pidfd *os.File // nil when the process was reaped before it was claimed
	Done  <-chan unix.WaitStatus
}

// Claim asks for the status of a child process; call it under a hold that
// began before the process could exist. ErrNotExist-like unix.ESRCH when there
// is no such process and no status of one.
func (r *Reaper) Claim(pid int) (Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := make(chan unix.WaitStatus, 1)
	pidfd, err := Open(pid)
	if err == nil && !isChild(pidfd) {
		pidfd.Close()
		pidfd, err = nil, unix.ESRCH // the number is a stranger's by now
	}
	switch end, early := r.early[pid]; {
	case err == nil:
		// Not reaped, so an early status under this number is of an older process.
		delete(r.early, pid)
		r.claimed[pid] = done
	case errors.Is(err, unix.ESRCH) && early:
		delete(r.early, pid)
		done <- end.ws
	default:
		return Child{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return Child{pid, pidfd, done}, nil
}

// isChild: it is a child of ours that is not reaped. Nothing is taken from the kernel by asking.
func isChild(pidfd *os.File) bool {
	const ask = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT | unix.WALL
	for {
		err := unix.Waitid(unix.P_PIDFD, unixfd.Of(pidfd), nil, ask, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}

// Start executes a program of ours, claimed from birth. A fork or exec that
// fails for want of memory, or of a program that is just being written, is
// tried again for a while.
func (r *Reaper) Start(argv []string, attr *syscall.ProcAttr) (Child, error) {
	release := r.Hold()
	defer release()
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	for range 20 {
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
		pid, err = syscall.ForkExec(argv[0], argv, attr)
	}
	if err != nil {
		return Child{}, err
	}
	return r.Claim(pid)
}

// KillGroup sends SIGKILL to the process group that pid leads, unless pid is
// reaped already and the number may mean somebody else.
func (r *Reaper) KillGroup(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ours := r.claimed[pid]; ours {
		_ = unix.Kill(-pid, unix.SIGKILL) // ESRCH: it leads no group any more
	}
}
