package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/store"
)

// recover compares the records with what runs. What is only a matter of memory is settled before it returns; what waits for processes or
// plugins is continued in the background, each pod by itself.
//
//	the record says       and it is true that        then
//	pod creating          -                          taken away
//	pod ready             pause runs                 kept
//	pod ready             pause is gone              not ready; the kubelet stops it
//	pod stopping          -                          stopped to the end
//	pod removing          -                          removed to the end
//	container creating    -                          taken away
//	container created     its mount is there         kept
//	container created     its mount is gone          exited, Unknown
//	container starting    a process runs             running
//	container starting    its runtime is at work     waited for, then as it turns out
//	container starting    none was started           created again
//	container running     the shim cannot tell yet   waited for, then as it turns out
//	container running     no process is known        exited, Unknown
//	container stopping    a process runs             stopped with what is left of the grace
//	container updating    it can be updated          updated, or what fails is undone
//	container exited      a start given up goes on   taken away
//	container removing    -                          removed to the end
func (m *Manager) recover(ctx context.Context) error {
	tasks, err := m.tasks(ctx)
	if err != nil {
		return fmt.Errorf("what runs already: %w", err)
	}
	for _, r := range m.store.List() {
		m.recoverPod(ctx, r, tasks)
	}
	if pods, containers := m.lacking(); len(m.unread)+len(pods)+len(containers) > 0 {
		go m.readAgain(ctx)
	} else {
		go m.collectAll(ctx, tasks)
	}
	m.lookAgain()
	return nil
}

// collectAll takes away what belongs to nobody, once after a start, when every record and request is in memory.
func (m *Manager) collectAll(ctx context.Context, tasks map[string]runtimeshim.Task) {
	guard.Run(ctx, "collecting what belongs to nobody", func() { m.collectOrphans(ctx, tasks) })
	guard.Run(ctx, "collecting networks", func() { m.collectGarbage(ctx) })
}

func (m *Manager) tasks(ctx context.Context) (map[string]runtimeshim.Task, error) {
	list, err := m.shim.Tasks(ctx)
	if err != nil {
		return nil, err
	}
	tasks := map[string]runtimeshim.Task{}
	for _, t := range list {
		tasks[t.ID] = t
	}
	return tasks, nil
}

func (m *Manager) recoverPod(ctx context.Context, r *store.Pod, tasks map[string]runtimeshim.Task) {
	m.mu.RLock()
	p := m.pods[r.ID]
	m.mu.RUnlock()
	ctx = withPod(ctx, p.id)
	for cid, c := range r.Containers {
		m.recoverContainer(ctx, r, c, cid, tasks)
	}
	m.holdPauseImage(ctx, r)
	task, ok := tasks[p.id]
	switch {
	case r.State == store.PodCreating || r.State == store.PodRemoving:
		go m.finish(ctx, "removing", func(ctx context.Context) error { return m.RemovePod(ctx, p.id) })
	case r.State == store.PodStopping:
		go m.finish(ctx, "stopping", func(ctx context.Context) error { return m.StopPod(ctx, p.id) })
	case r.State == store.PodReady && (!ok || task.Exit != nil):
		m.pauseExited(ctx, p)
	}
}

func (m *Manager) recoverContainer(ctx context.Context, p *store.Pod, r store.Container, cid string, tasks map[string]runtimeshim.Task) {
	m.mu.RLock()
	c := m.containers[cid]
	m.mu.RUnlock()
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", cid))
	for _, id := range append([]string{r.ImageID}, r.MountImages...) {
		if id == "" {
			continue
		}
		if err := m.images.Hold(id, cid); err != nil {
			log.G(ctx).WithError(err).Warn("an image of a container is gone")
		}
	}
	task, found := tasks[cid]
	running := found && task.Pid > 0 && task.Exit == nil
	switch r.State {
	case store.ContainerCreating, store.ContainerRemoving:
		go m.finish(ctx, "removing", func(ctx context.Context) error { return m.removeContainer(ctx, c) })
	case store.ContainerCreated:
		if !m.startable(ctx, c) {
			m.lost(ctx, c)
		}
	case store.ContainerStarting:
		switch {
		case running:
			m.log(ctx, m.declareRunning(ctx, c, task))
		case found && task.Exit != nil:
			m.containerExited(ctx, c, task)
		default:
			go m.finish(ctx, "starting", func(ctx context.Context) error { return m.resolveStart(ctx, c) })
		}
	case store.ContainerRunning, store.ContainerStopping:
		switch {
		case found && task.Exit != nil:
			m.containerExited(ctx, c, task)
		case found && task.State == "starting":
			go m.finish(ctx, "adopting", func(ctx context.Context) error { return m.recoverLater(ctx, p.ID, cid) })
		case !running:
			go m.finish(ctx, "clearing", func(ctx context.Context) error { return m.shim.Delete(ctx, cid) }) // should its cgroup hold somebody
			m.lost(ctx, c)
		case r.State == store.ContainerStopping:
			m.joinStop(ctx, c, stopBy(r))
		}
	case store.ContainerExited:
		c.markExited()
		if found && task.Exit == nil {
			go m.finish(ctx, "clearing", func(ctx context.Context) error { return m.shim.Delete(ctx, cid) })
		}
		go m.settle(ctx, c)
	}
	if r.Updating != nil && c.lacks == nil {
		m.settleLater(c)
	}
}

// startable says whether a created container has what a start needs. One of which that cannot be told now has it: the start will tell.
func (m *Manager) startable(ctx context.Context, c *container) bool {
	has, err := isThere(m.statePath("pods", c.podID, c.id, "config.json"))
	if err == nil && has {
		has, err = m.mounted(c.id)
	}
	m.log(ctx, err)
	return has || err != nil
}

// recoverLater is recoverContainer for one of which the shim could not tell yet whether it runs.
func (m *Manager) recoverLater(ctx context.Context, podID, cid string) error {
	task, found, err := m.settled(ctx, cid)
	if err != nil {
		return err
	}
	p, ok := m.store.Get(podID)
	if !ok || p.Containers[cid].ID == "" {
		return nil
	}
	tasks := map[string]runtimeshim.Task{}
	if found {
		tasks[cid] = task
	}
	m.recoverContainer(m.background, p, p.Containers[cid], cid, tasks)
	return nil
}

// resolveStart is resolve for a start that a restart interrupted.
func (m *Manager) resolveStart(ctx context.Context, c *container) error {
	done, err := m.turns.Take(ctx, c.id)
	if err != nil {
		return err
	}
	defer done()
	return m.resolve(ctx, c)
}

// resolve finds out, in the container's turn, what became of a start, waiting for a runtime that is still at work: a container with a process
// is adopted, one without is created again, so that it can be started.
func (m *Manager) resolve(ctx context.Context, c *container) error {
	task, found, err := m.settled(ctx, c.id)
	switch {
	case err != nil:
		return err
	case found && task.Exit != nil:
		m.containerExited(ctx, c, task)
		return nil
	case found && task.Pid > 0:
		return m.declareRunning(ctx, c, task)
	}
	if err := m.shim.Delete(ctx, c.id); err != nil {
		return err
	}
	return m.change(c, func(r *store.Container) error {
		if r.State == store.ContainerStarting {
			r.State = store.ContainerCreated
		}
		return nil
	})
}

// settled returns the task once the shim's runtime has come to an end with it. A shim that has just died is asked again.
func (m *Manager) settled(ctx context.Context, id string) (task runtimeshim.Task, found bool, err error) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		tasks, err := m.shim.Tasks(ctx)
		i := slices.IndexFunc(tasks, func(t runtimeshim.Task) bool { return t.ID == id })
		switch {
		case errors.Is(err, errdefs.ErrUnavailable):
		case err != nil:
			return task, false, err
		case i < 0:
			return task, false, nil
		case tasks[i].State != "starting":
			return tasks[i], true, nil
		default:
			err = errors.New("the runtime is still starting it")
		}
		select {
		case <-ctx.Done():
			return task, false, fmt.Errorf("what became of task %s: %w: %w", id, err, ctx.Err())
		case <-again.C:
		}
	}
}

// lost records a container that ended while nobody could see it.
func (m *Manager) lost(ctx context.Context, c *container) {
	r, _ := m.record(c)
	t := runtimeshim.Task{ID: c.id, StartedAt: time.Unix(0, max(r.Started, r.Created)), Exit: &runtimeshim.Exit{Code: 255, At: time.Now()}}
	m.containerExited(ctx, c, t)
}

func (m *Manager) holdPauseImage(ctx context.Context, r *store.Pod) {
	if r.PauseImage != "" && r.State != store.PodNotReady {
		m.log(ctx, m.images.Hold(r.PauseImage, r.ID))
	}
}

// log notes an error that does not change what happens next.
func (m *Manager) log(ctx context.Context, err error) {
	if err != nil {
		log.G(ctx).WithError(err).Warn("going on")
	}
}

// finish repeats an interrupted act until it succeeds, each time with more patience.
func (m *Manager) finish(ctx context.Context, what string, act func(context.Context) error) {
	for wait := time.Second; ; wait = min(2*wait, collectAtMost) {
		err := guard.Call(ctx, what, func() error { return clean(ctx, teardownLimit, act) })
		if err == nil || ctx.Err() != nil {
			return
		}
		log.G(ctx).WithField("step", what).WithError(err).Warn("what a restart interrupted is not finished yet")
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// collectOrphans takes away what carries this instance's mark and belongs to no record: tasks, network namespaces, root filesystems, files.
// Requests are served meanwhile, so each thing that was listed is held against what is known at that moment: a record comes before what it
// speaks of, and is forgotten after it.
func (m *Manager) collectOrphans(ctx context.Context, tasks map[string]runtimeshim.Task) {
	prefix := filepath.Base(m.netns(""))
	var networks []string
	for _, name := range namesIn(filepath.Dir(m.netns(""))) {
		if id, ours := strings.CutPrefix(name, prefix); ours {
			networks = append(networks, id)
		}
	}
	for _, kind := range []struct {
		ids    []string
		remove func(ctx context.Context, id string) error
	}{
		{slices.Collect(maps.Keys(tasks)), m.shim.Delete},
		{namesIn(m.statePath("pods")), func(_ context.Context, id string) error { return m.removePodFiles(id) }},
		{slices.Concat(namesIn(m.statePath("rootfs")), namesIn(m.statePath("userns")), namesIn(m.statePath("volumes"))), m.removeRoot},
		{namesIn(m.rootPath("containers")), func(ctx context.Context, id string) error { return m.trash.Put(ctx, m.rootPath("containers", id)) }},
		{namesIn(m.statePath("locks")), func(ctx context.Context, id string) error { return errors.Join(m.quiesce(ctx, id), m.dropLock(id)) }},
		{networks, func(ctx context.Context, id string) error {
			return errors.Join(m.network.Teardown(ctx, cni.Pod{ID: id, NetNS: m.netns(id)}), m.network.RemoveNetNS(m.netns(id)))
		}},
	} {
		for _, id := range kind.ids {
			if m.knows(id) || id == trashName {
				continue
			}
			remove := func(ctx context.Context) error { return kind.remove(ctx, id) }
			if err := clean(ctx, teardownLimit, remove); err != nil {
				m.log(ctx, err)
				go m.finish(ctx, "collecting", remove)
			}
		}
	}
}

// knows says whether id is a pod or a container of ours.
func (m *Manager) knows(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, pod := m.pods[id]
	_, container := m.containers[id]
	return pod || container
}

// namesIn returns what is in a folder; nothing when it cannot be read.
func namesIn(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
