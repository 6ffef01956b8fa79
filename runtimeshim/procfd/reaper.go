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

// Reaper is the only place in the shim that waits for processes. It reaps every child, including
// those inherited as a subreaper, and sends each status to whoever claimed the pid. While a hold is
// active it also keeps the statuses of unclaimed pids, because a process may end before the runtime
// has reported its pid.
type Reaper struct {
	mu      sync.Mutex
	claimed map[int]chan unix.WaitStatus
	early   map[int]earlyEnd
	holds   int
	reaped  chan struct{} // closed, and replaced, when a child is reaped
	prune   int           // when early has this many entries, pruneEarly removes those too old to be claimed
}

// earlyEnd is the status of a process that was reaped before it was claimed.
type earlyEnd struct {
	ws unix.WaitStatus
	at time.Time
}

// A container in the host's pid namespace may leave any number of orphans, which we inherit.
const fewEarly = 256

// adoptWait is how long Claim waits for a process to become our child.
const adoptWait = 10 * time.Second

// claimWait is longer than any hold needs to learn the pid of its process.
const claimWait = 3 * time.Minute

// NewReaper returns a Reaper, which begins to reap once Run is called.
func NewReaper() *Reaper {
	return &Reaper{claimed: map[int]chan unix.WaitStatus{}, early: map[int]earlyEnd{}, prune: fewEarly,
		reaped: make(chan struct{})}
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

// reapOne reaps one dead child and reports whether there may be more. It holds the lock over wait4,
// so that under the lock every process is either a zombie or has its status recorded.
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
	close(r.reaped)
	r.reaped = make(chan struct{})
	if done, ok := r.claimed[pid]; ok {
		delete(r.claimed, pid)
		done <- ws
	} else if r.holds > 0 {
		r.early[pid] = earlyEnd{ws, time.Now()}
		r.pruneEarly()
	}
	return true
}

// pruneEarly drops the statuses too old to be claimed, if there are many statuses.
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

// Claim requests the status of a child process. The caller must have a Hold that began before the
// process could exist. unix.ESRCH when neither the process nor its status exists, unix.EBUSY when
// somebody has claimed the process, who would never learn its status.
//
// The process of a container need not be our child yet: crun run --detach ends a moment before its
// own child does, which is the parent until then. Claim waits for that.
func (r *Reaper) Claim(pid int) (Child, error) {
	deadline := time.NewTimer(adoptWait)
	defer deadline.Stop()
	for {
		child, reaped, err := r.tryClaim(pid)
		if reaped == nil {
			return child, err
		}
		select {
		case <-reaped:
		case <-deadline.C:
			return Child{}, err
		}
	}
}

// tryClaim is Claim without waiting. When the process is somebody else's child, it also returns a
// channel that is closed when the next child of ours is reaped: that one may be its parent.
func (r *Reaper) tryClaim(pid int) (Child, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := make(chan unix.WaitStatus, 1)
	pidfd, err := Open(pid)
	var reaped chan struct{}
	if err == nil && !isChild(pidfd) {
		pidfd.Close()
		pidfd, err = nil, unix.ESRCH
		reaped = r.reaped
	}
	switch end, early := r.early[pid]; {
	case err == nil && r.claimed[pid] != nil:
		pidfd.Close()
		return Child{}, nil, fmt.Errorf("process %d: %w", pid, unix.EBUSY)
	case err == nil:
		// It is not reaped, so an early status for this pid is that of an older process.
		delete(r.early, pid)
		r.claimed[pid] = done
	case errors.Is(err, unix.ESRCH) && early:
		delete(r.early, pid)
		done <- end.ws
	default:
		return Child{}, reaped, fmt.Errorf("process %d: %w", pid, err)
	}
	return Child{pid, pidfd, done}, nil, nil
}

// isChild reports whether the process is our child and not reaped yet. It does not reap it.
func isChild(pidfd *os.File) bool {
	const ask = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT | unix.WALL
	for {
		err := unix.Waitid(unix.P_PIDFD, unixfd.Of(pidfd), nil, ask, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}

// Start executes a program and claims its process. It retries for a second when fork or exec fails
// because memory is short or the program file is being written.
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

// KillGroup sends SIGKILL to the process group of pid, unless the process is already reaped, when
// pid may belong to another process.
func (r *Reaper) KillGroup(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ours := r.claimed[pid]; ours {
		_ = unix.Kill(-pid, unix.SIGKILL) // ESRCH: it no longer leads a group
	}
}
