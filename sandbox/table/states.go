package table

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/spec/users"
	"github.com/cribox/cribox/sandbox/store"
)

// States is the only writer of records: each method is one transition, or notes one fact. A method
// of stop or remove goes on when the disk is full: it changes what is shown, and returns the error
// of the disk as well.
type States struct{ store *store.Store }

func NewStates(s *store.Store) *States { return &States{s} }

// podMoves and containerMoves say from which states a state can be reached.
var (
	podMoves = map[string][]string{
		store.PodReady:    {store.PodCreating},
		store.PodStopping: {store.PodReady},
		store.PodNotReady: {store.PodStopping},
		store.PodRemoving: {store.PodCreating, store.PodReady, store.PodStopping, store.PodNotReady, store.PodRemoving},
	}
	containerMoves = map[string][]string{
		store.ContainerCreated:  {store.ContainerCreating, store.ContainerStarting}, // the second: no process was started
		store.ContainerStarting: {store.ContainerCreated},
		store.ContainerRunning:  {store.ContainerStarting},
		store.ContainerStopping: {store.ContainerRunning},
		store.ContainerExited: {store.ContainerCreating, store.ContainerCreated, store.ContainerStarting,
			store.ContainerRunning,
			store.ContainerStopping},
		store.ContainerRemoving: {store.ContainerCreating, store.ContainerCreated, store.ContainerStarting,
			store.ContainerRunning,
			store.ContainerStopping, store.ContainerExited, store.ContainerRemoving},
	}
)

// movePod changes the state if that is legal, and says so.
func movePod(r *store.Pod, to string) bool {
	if !slices.Contains(podMoves[to], r.State) {
		return false
	}
	r.State = to
	return true
}

// moveContainer changes the state if that is legal, and says so.
func moveContainer(r *store.Container, to string) bool {
	if !slices.Contains(containerMoves[to], r.State) {
		return false
	}
	r.State = to
	return true
}

func (s *States) Get(id string) (*store.Pod, bool) { return s.store.Get(id) }

func (s *States) List() []*store.Pod { return s.store.List() }

// Again reads a record that could not be read at the start; nil when there is none any more.
func (s *States) Again(id string) (*store.Pod, error) { return s.store.Again(id) }

// SetAsked keeps a container's request.
func (s *States) SetAsked(c *ContainerEntry, asked []byte) error {
	return s.store.SetAsked(c.PodID, c.ID, asked)
}

// DropAsked forgets a container's request.
func (s *States) DropAsked(c *ContainerEntry) error { return s.store.DropAsked(c.PodID, c.ID) }

// Record returns the container's record as it is now.
func (s *States) Record(c *ContainerEntry) (store.Container, bool) {
	r, ok := s.store.Get(c.PodID)
	if !ok {
		return store.Container{}, false
	}
	rec, ok := r.Containers[c.ID]
	return rec, ok
}

// rewrite changes a container's record by one of the store's writers; act may refuse. A container
// that is gone is ErrNotFound.
func rewrite(
	write func(string, func(*store.Pod) error) (*store.Pod, error), c *ContainerEntry, act func(*store.Container) error,
) error {
	_, err := write(c.PodID, func(p *store.Pod) error {
		r, ok := p.Containers[c.ID]
		if !ok {
			return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
		}
		if err := act(&r); err != nil {
			return err
		}
		p.Containers[c.ID] = r
		return nil
	})
	return err
}

// PodCreating begins a pod: r says what was decided, asked is the request.
func (s *States) PodCreating(r store.Pod, asked []byte) error {
	r.State = store.PodCreating
	return s.store.Create(r, asked)
}

// PodCgroup notes where the pause process is put.
func (s *States) PodCgroup(id, cgroup string) error {
	_, err := s.store.Update(id, func(r *store.Pod) error { r.Cgroup = cgroup; return nil })
	return err
}

// PodReady shows the pod. ErrAborted when its pause process has ended meanwhile, which was not
// recorded as long as the pod was being made, or when somebody takes the pod away.
func (s *States) PodReady(p *PodEntry, ips []netip.Addr, pausePID int) error {
	_, err := s.store.Update(p.ID, func(r *store.Pod) error {
		select {
		case <-p.paused:
			return fmt.Errorf("the pause process of pod %s ended while the pod was being created: %w", p.ID, errdefs.ErrAborted)
		default:
		}
		if !movePod(r, store.PodReady) {
			return fmt.Errorf("pod %s is %s: %w", p.ID, r.State, errdefs.ErrAborted)
		}
		r.PausePID, r.IPs = pausePID, make([]string, 0, len(ips))
		for _, ip := range ips {
			r.IPs = append(r.IPs, ip.String())
		}
		return nil
	})
	return err
}

// PodPauseEnded makes a pod that was ready one that is not. ErrNotFound when it was not ready.
func (s *States) PodPauseEnded(id string) error {
	_, err := s.store.ForceUpdate(id, func(r *store.Pod) error {
		if !IsReady(r) {
			return errdefs.ErrNotFound
		}
		r.PausePID = 0
		return nil
	})
	return err
}

// PodStopping begins the stop of a pod that is ready, and returns the state before.
func (s *States) PodStopping(id string) (was string, err error) {
	_, err = s.store.ForceUpdate(id, func(r *store.Pod) error {
		was = r.State
		movePod(r, store.PodStopping)
		return nil
	})
	return was, err
}

// PodStopped shows that nothing of the pod runs any more; a pod that is being removed stays so.
// ErrAlreadyExists when that is shown already.
func (s *States) PodStopped(id string) error {
	_, err := s.store.ForceUpdate(id, func(r *store.Pod) error {
		if r.State == store.PodRemoving && r.PausePID == 0 {
			return errdefs.ErrAlreadyExists
		}
		movePod(r, store.PodNotReady)
		r.PausePID, r.IPs = 0, nil
		return nil
	})
	return err
}

// PodRemoving begins a removal, and returns the state before.
func (s *States) PodRemoving(id string) (was string, err error) {
	_, err = s.store.ForceUpdate(id, func(r *store.Pod) error {
		was = r.State
		movePod(r, store.PodRemoving)
		return nil
	})
	return was, err
}

// PodForgotten removes the record. An unknown pod is no error.
func (s *States) PodForgotten(id string) error { return s.store.Remove(id) }

// PodLimits notes what a pod costs and may use, each an encoded CRI message; nil leaves it as it
// is.
func (s *States) PodLimits(id string, overhead, limits []byte) error {
	_, err := s.store.Update(id, func(r *store.Pod) error {
		if overhead != nil {
			r.Overhead = overhead
		}
		if limits != nil {
			r.Limits = limits
		}
		return nil
	})
	return err
}

// Creating begins a container in a pod that is ready, and keeps its request. ErrFailedPrecondition.
// From here on recovery knows of the container.
func (s *States) Creating(podID string, rec store.Container) error {
	rec.State = store.ContainerCreating
	_, err := s.store.Update(podID, func(r *store.Pod) error {
		if !IsReady(r) {
			return fmt.Errorf("pod %s is not ready; no container can be created in it: %w", podID, errdefs.ErrFailedPrecondition)
		}
		r.Containers[rec.ID] = rec
		return nil
	})
	return err
}

// Prepared notes where the container will be and as whom it will run.
func (s *States) Prepared(c *ContainerEntry, cgroup string, user users.User) error {
	return rewrite(s.store.Update, c, func(r *store.Container) error {
		r.Cgroup = cgroup
		r.UID, r.GID, r.Groups = user.UID, user.GID, user.AdditionalGIDs
		return nil
	})
}

// Created shows the container. ErrFailedPrecondition when its pod is not ready any more.
func (s *States) Created(c *ContainerEntry) error {
	_, err := s.store.Update(c.PodID, func(p *store.Pod) error {
		if !IsReady(p) {
			return fmt.Errorf("pod %s is no longer ready: %w", p.ID, errdefs.ErrFailedPrecondition)
		}
		r := p.Containers[c.ID]
		moveContainer(&r, store.ContainerCreated)
		p.Containers[c.ID] = r
		return nil
	})
	return err
}

// Starting begins a start. ErrNotFound, and ErrFailedPrecondition unless the container is created
// and its pod ready.
func (s *States) Starting(c *ContainerEntry) error {
	_, err := s.store.Update(c.PodID, func(p *store.Pod) error {
		r, ok := p.Containers[c.ID]
		if !ok {
			return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
		}
		was := r.State
		if !moveContainer(&r, store.ContainerStarting) {
			return fmt.Errorf("container %s is %s; only a created container can be started: %w",
				c.ID, was, errdefs.ErrFailedPrecondition)
		}
		if !IsReady(p) {
			return fmt.Errorf("pod %s is not ready: %w", p.ID, errdefs.ErrFailedPrecondition)
		}
		p.Containers[c.ID] = r
		return nil
	})
	return err
}

// NotStarted makes a container whose start came to nothing a created one again.
func (s *States) NotStarted(c *ContainerEntry) error {
	return rewrite(s.store.Update, c, func(r *store.Container) error {
		if r.State == store.ContainerStarting {
			moveContainer(r, store.ContainerCreated)
		}
		return nil
	})
}

// Running shows the process of a container, unless its exit was faster.
func (s *States) Running(c *ContainerEntry, pid int, since time.Time) error {
	return rewrite(s.store.ForceUpdate, c, func(r *store.Container) error {
		r.PID, r.Started = pid, since.UnixNano()
		moveContainer(r, store.ContainerRunning)
		if r.Finished != 0 {
			r.Finished = max(r.Finished, r.Started+1)
		}
		return nil
	})
}

// startError is the reason of a container that had no process (CRI ContainerStatus.reason, as the
// kubelet knows it).
const startError = "StartError"

// StartFailed ends a container that had no process. One that has ended already did run, and stays
// as it is.
func (s *States) StartFailed(c *ContainerEntry, cause error) error {
	return rewrite(s.store.ForceUpdate, c, func(r *store.Container) error {
		if !moveContainer(r, store.ContainerExited) {
			return nil
		}
		r.ExitCode, r.Reason, r.Message = 128, startError, cause.Error()
		r.Started = time.Now().UnixNano() // the true time: a kubelet waits for so long after an end before it tries again
		r.Finished = r.Started + 1
		return nil
	})
}

// Ending is how a container's process has ended.
type Ending struct {
	PID             int // 0: not known
	Started, At     time.Time
	Code            int32
	Reason, Message string
}

// Exited records the end of a container. ErrAlreadyExists when it has ended or is being removed,
// ErrNotFound when the end is that of an earlier start.
func (s *States) Exited(c *ContainerEntry, e Ending) error {
	return rewrite(s.store.ForceUpdate, c, func(r *store.Container) error {
		before := *r
		if !moveContainer(r, store.ContainerExited) {
			return errdefs.ErrAlreadyExists
		}
		if before.PID != 0 && e.PID != 0 && before.PID != e.PID {
			return errdefs.ErrNotFound
		}
		r.ExitCode, r.Finished = e.Code, e.At.UnixNano()
		if r.Started == 0 {
			r.Started = e.Started.UnixNano()
		}
		r.Finished = max(r.Finished, r.Started+1)
		r.Reason, r.Message = e.Reason, e.Message
		return nil
	})
}

// Stopping begins a stop, or notes that it ends earlier: by is when it turns into SIGKILL. It
// returns the signal that the container is stopped with, 0 for the usual one.
func (s *States) Stopping(c *ContainerEntry, by time.Time) (signal syscall.Signal, err error) {
	err = rewrite(s.store.ForceUpdate, c, func(r *store.Container) error {
		moveContainer(r, store.ContainerStopping)
		r.StopBy, r.StopByBoot, signal = by.UnixNano(), sinceBoot()+int64(time.Until(by)), syscall.Signal(r.Signal)
		return nil
	})
	return signal, err
}

// Removing begins the removal of a container.
func (s *States) Removing(c *ContainerEntry) error {
	return rewrite(s.store.ForceUpdate, c, func(r *store.Container) error {
		moveContainer(r,
			store.ContainerRemoving)
		return nil
	})
}

// Forgotten takes a container out of its pod's record.
func (s *States) Forgotten(c *ContainerEntry) error {
	_, err := s.store.ForceUpdate(c.PodID, func(p *store.Pod) error { delete(p.Containers, c.ID); return nil })
	return err
}

// Updating notes the update that is about to be made, an encoded CRI message. ErrFailedPrecondition
// when the container's resources cannot be changed any more.
func (s *States) Updating(c *ContainerEntry, asked []byte) error {
	return rewrite(s.store.Update, c, func(r *store.Container) error {
		r.Updating = asked
		return Changeable(*r)
	})
}

// Updated shows the resources that hold now; merge returns them, given those before.
func (s *States) Updated(c *ContainerEntry, merge func(limits []byte) ([]byte, error)) error {
	return rewrite(s.store.ForceUpdate, c, func(r *store.Container) error {
		limits, err := merge(r.Limits)
		r.Limits, r.Updating = limits, nil
		return err
	})
}

// NotUpdated forgets an update that came to nothing.
func (s *States) NotUpdated(c *ContainerEntry) error {
	return rewrite(s.store.ForceUpdate, c, func(r *store.Container) error { r.Updating = nil; return nil })
}

func Changeable(r store.Container) error {
	switch r.State {
	case store.ContainerCreated, store.ContainerStarting, store.ContainerRunning, store.ContainerStopping:
		return nil
	}
	return fmt.Errorf("container %s is %s; its resources cannot be changed: %w",
		r.ID, r.State, errdefs.ErrFailedPrecondition)
}

// sinceBoot is the time since the machine's boot in nanoseconds, suspends included.
func sinceBoot() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil { // cannot be: every kernel has it
		return 0
	}
	return now.Nano()
}

// StopBy is when the grace of a stop ends that was recorded before a restart. The clock of dates
// may have been set meanwhile.
func StopBy(r store.Container) time.Time {
	if r.StopByBoot == 0 {
		return time.Unix(0, r.StopBy)
	}
	return time.Now().Add(time.Duration(r.StopByBoot - sinceBoot()))
}
