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
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/network"
	"github.com/cribox/cribox/sandbox/podfiles"
	"github.com/cribox/cribox/sandbox/rootfs"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// recovery brings what a crash has interrupted to an end. It is at work while the daemon starts,
// and as long as a record or a request cannot be read.
type recovery struct {
	layout     layout.Layout
	states     *table.States
	table      *table.Table
	mounts     *rootfs.Mounts
	files      podfiles.Files
	network    *network.Connector
	containers *containers
	endings    *endings
	pods       *pods
	updates    *updates
	shim       Runtime
	background context.Context // ends with Close; for what nobody waits for
}

// recover compares the records with what runs. What is only a matter of memory is settled before it
// returns; what waits for processes or plugins is continued in the background, each pod by itself.
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
func (rc *recovery) recover(ctx context.Context) error {
	tasks, err := rc.tasks(ctx)
	if err != nil {
		return fmt.Errorf("list the running tasks: %w", err)
	}
	for _, r := range rc.states.List() {
		rc.recoverPod(ctx, r, tasks)
	}
	if pods, containers := rc.table.Lacking(); len(rc.table.UnreadPods())+len(pods)+len(containers) > 0 {
		go rc.readAgain(ctx)
	} else {
		go rc.collectAll(ctx, tasks)
	}
	rc.network.LookAgain()
	return nil
}

// collectAll takes away what belongs to nobody, once after a start, when every record and request
// is in memory.
func (rc *recovery) collectAll(ctx context.Context, tasks map[string]runtimeshim.Task) {
	guard.Run(ctx, "collecting what belongs to nobody", func() { rc.collectOrphans(ctx, tasks) })
	guard.Run(ctx, "collecting networks", func() { rc.network.CollectUnused(ctx) })
}

func (rc *recovery) tasks(ctx context.Context) (map[string]runtimeshim.Task, error) {
	list, err := rc.shim.Tasks(ctx)
	if err != nil {
		return nil, err
	}
	tasks := map[string]runtimeshim.Task{}
	for _, t := range list {
		tasks[t.ID] = t
	}
	return tasks, nil
}

func (rc *recovery) recoverPod(ctx context.Context, r *store.Pod, tasks map[string]runtimeshim.Task) {
	p, _ := rc.table.ByID(r.ID)
	ctx = rc.pods.about(ctx, p)
	for cid, c := range r.Containers {
		rc.recoverContainer(ctx, r, c, cid, tasks)
	}
	if r.PauseImage != "" && r.State != store.PodNotReady {
		warn(ctx, rc.mounts.Images.Hold(r.PauseImage, r.ID))
	}
	task, ok := tasks[p.ID]
	switch {
	case r.State == store.PodCreating || r.State == store.PodRemoving:
		go retryUntilDone(ctx, "removing", func(ctx context.Context) error { return rc.pods.RemovePod(ctx, p.ID) })
	case r.State == store.PodStopping:
		go retryUntilDone(ctx, "stopping", func(ctx context.Context) error { return rc.pods.StopPod(ctx, p.ID) })
	case r.State == store.PodReady && (!ok || task.Exit != nil):
		rc.pods.pauseExited(ctx, p)
	}
}

func (rc *recovery) recoverContainer(
	ctx context.Context, p *store.Pod, r store.Container, cid string, tasks map[string]runtimeshim.Task,
) {
	_, c := rc.table.ByID(cid)
	ctx = aboutContainer(ctx, rc.containers, c)
	for _, id := range append([]string{r.ImageID}, r.MountImages...) {
		if id == "" {
			continue
		}
		if err := rc.mounts.Images.Hold(id, cid); err != nil {
			log.G(ctx).WithError(err).Warn("the image of a container is missing")
		}
	}
	task, found := tasks[cid]
	running := found && task.Pid > 0 && task.Exit == nil
	switch r.State {
	case store.ContainerCreating, store.ContainerRemoving:
		go retryUntilDone(ctx, "removing", func(ctx context.Context) error { return rc.containers.removeContainer(ctx, c) })
	case store.ContainerCreated:
		if !rc.startable(ctx, c) {
			rc.endings.lost(ctx, c)
		}
	case store.ContainerStarting:
		switch {
		case running:
			warn(ctx, rc.containers.declareRunning(ctx, c, task))
		case found && task.Exit != nil:
			rc.endings.exited(ctx, c, task)
		default:
			go retryUntilDone(ctx, "starting", func(ctx context.Context) error { return rc.containers.resolveStart(ctx, c) })
		}
	case store.ContainerRunning, store.ContainerStopping:
		switch {
		case found && task.Exit != nil:
			rc.endings.exited(ctx, c, task)
		case found && task.State == "starting":
			go retryUntilDone(ctx, "adopting", func(ctx context.Context) error { return rc.recoverLater(ctx, p.ID, cid) })
		case !running:
			// should its cgroup hold somebody
			go retryUntilDone(ctx, "clearing", func(ctx context.Context) error { return rc.shim.Delete(ctx, cid) })
			rc.endings.lost(ctx, c)
		case r.State == store.ContainerStopping:
			rc.containers.joinStop(ctx, c, table.StopBy(r))
		}
	case store.ContainerExited:
		c.MarkExited()
		if found && task.Exit == nil {
			go retryUntilDone(ctx, "clearing", func(ctx context.Context) error { return rc.shim.Delete(ctx, cid) })
		}
		go rc.endings.releaseLater(ctx, c)
	}
	if r.Updating != nil && c.Lacks == nil {
		rc.updates.completeLater(c)
	}
}

// startable says whether a created container has what a start needs. One of which that cannot be
// told now has it: the start will tell.
func (rc *recovery) startable(ctx context.Context, c *table.ContainerEntry) bool {
	has, err := isThere(rc.layout.StatePath("pods", c.PodID, c.ID, "config.json"))
	if err == nil && has {
		has, err = rc.mounts.Mounted(c.ID)
	}
	warn(ctx, err)
	return has || err != nil
}

// isThere says whether there is something at path. An error means that it cannot be told now.
func isThere(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// recoverLater is recoverContainer for one of which the shim could not tell yet whether it runs.
func (rc *recovery) recoverLater(ctx context.Context, podID, cid string) error {
	task, found, err := rc.containers.awaitStartOutcome(ctx, cid)
	if err != nil {
		return err
	}
	p, ok := rc.states.Get(podID)
	if !ok || p.Containers[cid].ID == "" {
		return nil
	}
	tasks := map[string]runtimeshim.Task{}
	if found {
		tasks[cid] = task
	}
	rc.recoverContainer(rc.background, p, p.Containers[cid], cid, tasks)
	return nil
}

// resolveStart is resolve for a start that a restart interrupted.
func (cs *containers) resolveStart(ctx context.Context, c *table.ContainerEntry) error {
	done, err := cs.turns.Take(ctx, c.ID)
	if err != nil {
		return err
	}
	defer done()
	return cs.resolve(ctx, c)
}

// resolve finds out, in the container's turn, what became of a start, waiting for a runtime that is
// still at work: a container with a process is adopted, one without is created again, so that it
// can be started.
func (cs *containers) resolve(ctx context.Context, c *table.ContainerEntry) error {
	task, found, err := cs.awaitStartOutcome(ctx, c.ID)
	switch {
	case err != nil:
		return err
	case found && task.Exit != nil:
		cs.endings.exited(ctx, c, task)
		return nil
	case found && task.Pid > 0:
		return cs.declareRunning(ctx, c, task)
	}
	if err := cs.shim.Delete(ctx, c.ID); err != nil {
		return err
	}
	return cs.states.NotStarted(c)
}

// awaitStartOutcome returns the task once the shim's runtime has come to an end with it. A shim that has just
// died is asked again.
func (cs *containers) awaitStartOutcome(ctx context.Context, id string) (task runtimeshim.Task, found bool, err error) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		task, err := cs.shim.Task(ctx, id)
		switch {
		case errors.Is(err, errdefs.ErrUnavailable):
		case errors.Is(err, errdefs.ErrNotFound):
			return task, false, nil
		case err != nil:
			return task, false, err
		case task.State != "starting":
			return task, true, nil
		default:
			err = errors.New("the runtime is still starting it")
		}
		select {
		case <-ctx.Done():
			return task, false, fmt.Errorf("find out whether task %s was started: %w: %w", id, err, ctx.Err())
		case <-again.C:
		}
	}
}

// collectOrphans takes away what carries this instance's mark and belongs to no record: tasks,
// network namespaces, root filesystems, files. Requests are served meanwhile, so each thing that
// was listed is held against what is known at that moment: a record comes before what it speaks of,
// and is forgotten after it.
func (rc *recovery) collectOrphans(ctx context.Context, tasks map[string]runtimeshim.Task) {
	prefix := filepath.Base(rc.layout.NetNS(""))
	var networks []string
	for _, name := range namesIn(filepath.Dir(rc.layout.NetNS(""))) {
		if id, ours := strings.CutPrefix(name, prefix); ours {
			networks = append(networks, id)
		}
	}
	for _, kind := range []struct {
		ids    []string
		remove func(ctx context.Context, id string) error
	}{
		{slices.Collect(maps.Keys(tasks)), rc.shim.Delete},
		{namesIn(rc.layout.StatePath("pods")), func(_ context.Context, id string) error { return rc.files.Remove(id) }},
		{slices.Concat(namesIn(rc.layout.StatePath("rootfs")), namesIn(rc.layout.StatePath("userns")),
			namesIn(rc.layout.StatePath("volumes"))), rc.mounts.Remove},
		{namesIn(rc.layout.RootPath("containers")), rc.mounts.Discard},
		{namesIn(rc.layout.StatePath("locks")), func(ctx context.Context, id string) error {
			return errors.Join(rc.network.Quiesce(ctx, id), rc.network.DropLock(id))
		}},
		{networks, func(ctx context.Context, id string) error {
			return errors.Join(rc.network.Teardown(ctx, cni.Pod{ID: id, NetNS: rc.layout.NetNS(id)}),
				rc.network.RemoveNetNS(rc.layout.NetNS(id)))
		}},
	} {
		for _, id := range kind.ids {
			if rc.knows(id) || id == trashName {
				continue
			}
			remove := func(ctx context.Context) error { return kind.remove(ctx, id) }
			if err := clean(ctx, teardownLimit, remove); err != nil {
				warn(ctx, err)
				go retryUntilDone(ctx, "collecting", remove)
			}
		}
	}
}

// knows says whether id is a pod or a container of ours.
func (rc *recovery) knows(id string) bool {
	p, c := rc.table.ByID(id)
	return p != nil || c != nil
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
