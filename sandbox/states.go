package sandbox

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

// states is the only writer of records: each method is one transition, or notes one fact. A method
// of stop or remove goes on when the disk is full: it changes what is shown, and returns the error of
// the disk as well.
type states struct{ store *store.Store }

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
		store.ContainerExited: {store.ContainerCreating, store.ContainerCreated, store.ContainerStarting, store.ContainerRunning,
			store.ContainerStopping},
		store.ContainerRemoving: {store.ContainerCreating, store.ContainerCreated, store.ContainerStarting, store.ContainerRunning,
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

func (s *states) get(id string) (*store.Pod, bool) { return s.store.Get(id) }

func (s *states) list() []*store.Pod { return s.store.List() }

// record returns the container's record as it is now.
func (s *states) record(c *container) (store.Container, bool) {
	r, ok := s.store.Get(c.podID)
	if !ok {
		return store.Container{}, false
	}
	rec, ok := r.Containers[c.id]
	return rec, ok
}

// change rewrites a container's record; act may refuse. A container that is gone is ErrNotFound.
func (s *states) change(c *container, act func(*store.Container) error) error {
	_, err := s.store.Update(c.podID, changing(c, act))
	return err
}

// insist is change for stop and remove, which go on when the disk is full.
func (s *states) insist(c *container, act func(*store.Container) error) error {
	_, err := s.store.Insist(c.podID, changing(c, act))
	return err
}

func changing(c *container, act func(*store.Container) error) func(*store.Pod) error {
	return func(p *store.Pod) error {
		r, ok := p.Containers[c.id]
		if !ok {
			return fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
		}
		if err := act(&r); err != nil {
			return err
		}
		p.Containers[c.id] = r
		return nil
	}
}

// podCreating begins a pod: r says what was decided, asked is the request.
func (s *states) podCreating(r store.Pod, asked []byte) error {
	r.State = store.PodCreating
	return s.store.Create(r, asked)
}

// podCgroup notes where the pause process is put.
func (s *states) podCgroup(id, cgroup string) error {
	_, err := s.store.Update(id, func(r *store.Pod) error { r.Cgroup = cgroup; return nil })
	return err
}

// podReady shows the pod. ErrAborted when its pause process has ended meanwhile, which was not
// recorded as long as the pod was being made, or when somebody takes the pod away.
func (s *states) podReady(p *pod, ips []netip.Addr, pausePID int) error {
	_, err := s.store.Update(p.id, func(r *store.Pod) error {
		select {
		case <-p.paused:
			return fmt.Errorf("pause of pod %s ended while the pod was made: %w", p.id, errdefs.ErrAborted)
		default:
		}
		if !movePod(r, store.PodReady) {
			return fmt.Errorf("pod %s is %s: %w", p.id, r.State, errdefs.ErrAborted)
		}
		r.PausePID, r.IPs = pausePID, make([]string, 0, len(ips))
		for _, ip := range ips {
			r.IPs = append(r.IPs, ip.String())
		}
		return nil
	})
	return err
}

// podPauseEnded makes a pod that was ready one that is not. ErrNotFound when it was not ready.
func (s *states) podPauseEnded(id string) error {
	_, err := s.store.Insist(id, func(r *store.Pod) error {
		if !ready(r) {
			return errdefs.ErrNotFound
		}
		r.PausePID = 0
		return nil
	})
	return err
}

// podStopping begins the stop of a pod that is ready, and returns the record after it.
func (s *states) podStopping(id string) (*store.Pod, error) {
	return s.store.Insist(id, func(r *store.Pod) error { movePod(r, store.PodStopping); return nil })
}

// podStopped shows that nothing of the pod runs any more; a pod that is being removed stays so.
// ErrAlreadyExists when that is shown already.
func (s *states) podStopped(id string) error {
	_, err := s.store.Insist(id, func(r *store.Pod) error {
		if r.State == store.PodRemoving && r.PausePID == 0 {
			return errdefs.ErrAlreadyExists
		}
		movePod(r, store.PodNotReady)
		r.PausePID, r.IPs = 0, nil
		return nil
	})
	return err
}

// podRemoving begins a removal.
func (s *states) podRemoving(id string) error {
	_, err := s.store.Insist(id, func(r *store.Pod) error { movePod(r, store.PodRemoving); return nil })
	return err
}

// podForgotten removes the record. An unknown pod is no error.
func (s *states) podForgotten(id string) error { return s.store.Remove(id) }

// podLimits notes what a pod costs and may use, each an encoded CRI message; nil leaves it as it is.
func (s *states) podLimits(id string, overhead, limits []byte) error {
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

// creating begins a container in a pod that is ready, and keeps its request. ErrFailedPrecondition.
// From here on recovery knows of the container.
func (s *states) creating(podID string, rec store.Container) error {
	rec.State = store.ContainerCreating
	_, err := s.store.Update(podID, func(r *store.Pod) error {
		if !ready(r) {
			return fmt.Errorf("pod %s is not ready, no container can be made in it: %w", podID, errdefs.ErrFailedPrecondition)
		}
		r.Containers[rec.ID] = rec
		return nil
	})
	return err
}

// prepared notes where the container will be and as whom it will run.
func (s *states) prepared(c *container, cgroup string, user spec.User) error {
	return s.change(c, func(r *store.Container) error {
		r.Cgroup = cgroup
		r.UID, r.GID, r.Groups = user.UID, user.GID, user.AdditionalGIDs
		return nil
	})
}

// created shows the container. ErrFailedPrecondition when its pod is not ready any more.
func (s *states) created(c *container) error {
	_, err := s.store.Update(c.podID, func(p *store.Pod) error {
		if !ready(p) {
			return fmt.Errorf("pod %s is not ready any more: %w", p.ID, errdefs.ErrFailedPrecondition)
		}
		r := p.Containers[c.id]
		moveContainer(&r, store.ContainerCreated)
		p.Containers[c.id] = r
		return nil
	})
	return err
}

// starting begins a start. ErrNotFound, and ErrFailedPrecondition unless the container is created and
// its pod ready.
func (s *states) starting(c *container) error {
	_, err := s.store.Update(c.podID, func(p *store.Pod) error {
		r, ok := p.Containers[c.id]
		if !ok {
			return fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
		}
		was := r.State
		if !moveContainer(&r, store.ContainerStarting) {
			return fmt.Errorf("container %s is %s, only a created one can be started: %w", c.id, was, errdefs.ErrFailedPrecondition)
		}
		if !ready(p) {
			return fmt.Errorf("pod %s is not ready: %w", p.ID, errdefs.ErrFailedPrecondition)
		}
		p.Containers[c.id] = r
		return nil
	})
	return err
}

// notStarted makes a container whose start came to nothing a created one again.
func (s *states) notStarted(c *container) error {
	return s.change(c, func(r *store.Container) error {
		if r.State == store.ContainerStarting {
			moveContainer(r, store.ContainerCreated)
		}
		return nil
	})
}

// running shows the process of a container, unless its exit was faster.
func (s *states) running(c *container, pid int, since time.Time) error {
	return s.insist(c, func(r *store.Container) error {
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

// startFailed ends a container that had no process. One that has ended already did run, and stays
// as it is.
func (s *states) startFailed(c *container, cause error) error {
	return s.insist(c, func(r *store.Container) error {
		if !moveContainer(r, store.ContainerExited) {
			return nil
		}
		r.ExitCode, r.Reason, r.Message = 128, startError, cause.Error()
		r.Started = time.Now().UnixNano() // the true time: a kubelet waits for so long after an end before it tries again
		r.Finished = r.Started + 1
		return nil
	})
}

// ending is how a container's process has ended.
type ending struct {
	pid             int // 0: not known
	started, at     time.Time
	code            int32
	reason, message string
}

// exited records the end of a container. ErrAlreadyExists when it has ended or is being removed,
// ErrNotFound when the end is that of an earlier start.
func (s *states) exited(c *container, e ending) error {
	return s.insist(c, func(r *store.Container) error {
		before := *r
		if !moveContainer(r, store.ContainerExited) {
			return errdefs.ErrAlreadyExists
		}
		if before.PID != 0 && e.pid != 0 && before.PID != e.pid {
			return errdefs.ErrNotFound
		}
		r.ExitCode, r.Finished = e.code, e.at.UnixNano()
		if r.Started == 0 {
			r.Started = e.started.UnixNano()
		}
		r.Finished = max(r.Finished, r.Started+1)
		r.Reason, r.Message = e.reason, e.message
		return nil
	})
}

// stopping begins a stop, or notes that it ends earlier: by is when it turns into SIGKILL. It returns
// the signal that the container is stopped with, 0 for the usual one.
func (s *states) stopping(c *container, by time.Time) (signal syscall.Signal, err error) {
	err = s.insist(c, func(r *store.Container) error {
		moveContainer(r, store.ContainerStopping)
		r.StopBy, r.StopByBoot, signal = by.UnixNano(), sinceBoot()+int64(time.Until(by)), syscall.Signal(r.Signal)
		return nil
	})
	return signal, err
}

// removing begins the removal of a container.
func (s *states) removing(c *container) error {
	return s.insist(c, func(r *store.Container) error { moveContainer(r, store.ContainerRemoving); return nil })
}

// forgotten takes a container out of its pod's record.
func (s *states) forgotten(c *container) error {
	_, err := s.store.Insist(c.podID, func(p *store.Pod) error { delete(p.Containers, c.id); return nil })
	return err
}

// updating notes the update that is about to be made, an encoded CRI message. ErrFailedPrecondition
// when the container's resources cannot be changed any more.
func (s *states) updating(c *container, asked []byte) error {
	return s.change(c, func(r *store.Container) error {
		r.Updating = asked
		return changeable(*r)
	})
}

// updated shows the resources that hold now; merge returns them, given those before.
func (s *states) updated(c *container, merge func(limits []byte) ([]byte, error)) error {
	return s.insist(c, func(r *store.Container) error {
		limits, err := merge(r.Limits)
		r.Limits, r.Updating = limits, nil
		return err
	})
}

// notUpdated forgets an update that came to nothing.
func (s *states) notUpdated(c *container) error {
	return s.insist(c, func(r *store.Container) error { r.Updating = nil; return nil })
}
