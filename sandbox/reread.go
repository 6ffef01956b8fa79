package sandbox

import (
	"context"
	"time"

	"github.com/containerd/log"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/table"
)

// readPause is how long a record or request that cannot be read is left alone, doubled up to
// readAtMost.
const readPause, readAtMost = time.Second, time.Minute

// readAgain reads what could not be read, until nothing is left of it. Then it takes away what
// belongs to nobody.
func (rc *recovery) readAgain(ctx context.Context) {
	for pause := readPause; ; pause = min(2*pause, readAtMost) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		done := false
		guard.Run(ctx, "reading records again", func() {
			records := rc.readRecords(ctx)
			done = rc.readRequests(ctx) && records
		})
		if done {
			break
		}
	}
	log.G(ctx).Info("all records and requests can be read again")
	tasks, err := rc.tasks(ctx)
	if err != nil {
		warn(ctx, err) // the next start collects
		return
	}
	rc.collectAll(ctx, tasks)
}

// readRecords says whether every record is in memory.
func (rc *recovery) readRecords(ctx context.Context) bool {
	done := true
	for _, id := range rc.table.UnreadPods() {
		r, err := rc.states.Again(id)
		var tasks map[string]runtimeshim.Task
		if err == nil {
			tasks, err = rc.tasks(ctx)
		}
		if err != nil {
			done = false
			continue
		}
		if r != nil {
			rc.table.Remember(ctx, r)
			rc.recoverPod(ctx, r, tasks)
		}
		rc.table.WasRead(id)
	}
	return done
}

// readRequests says whether every request is in memory. A pod or container that is known by its
// request now takes the place of the one without, whose end it shares.
func (rc *recovery) readRequests(ctx context.Context) bool {
	pods, containers := rc.table.Lacking()
	done := true
	for _, p := range pods {
		next := table.NewPodEntry(p.ID, &runtimeapi.PodSandboxConfig{})
		if rc.table.ReadRequest(p.ID, "", next.Config) != nil {
			done = false
			continue
		}
		rc.table.ReplacePod(p, next)
	}
	for _, c := range containers {
		r, ok := rc.states.Record(c)
		next := table.NewContainerEntry(c.PodID, r, &runtimeapi.ContainerConfig{})
		if !ok || rc.table.ReadRequest(c.PodID, c.ID, next.Config) != nil {
			done = done && !ok
			continue
		}
		rc.table.ReplaceContainer(c, next)
		if r.Updating != nil {
			rc.updates.completeLater(next)
		}
	}
	return done
}
