package network

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/store"
)

// CollectUnused has the network plugins give back, once after a start, what no pod uses. It waits
// as long as what is in use cannot be told for certain, and tries again later.
func (c *Connector) CollectUnused(ctx context.Context) {
	said := ""
	for wait := collectEvery; ; wait = min(2*wait, collectAtMost) {
		err := c.Network.CollectGarbage(ctx, c.connected())
		if err == nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			log.G(ctx).WithField("step", "cni").WithError(err).
				Info("cannot tell the network plugins yet which pods exist (GC); will retry")
		}
		if !errors.Is(err, errdefs.ErrUnavailable) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// connected returns the pods that have a network of their own and use it.
func (c *Connector) connected() []string {
	var ids []string
	for _, r := range c.table.States.List() {
		if r.State == store.PodReady && r.NetNS != "" {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// collectEvery is how long the collector waits after a round that left something, doubled up to
// collectAtMost.
const (
	collectEvery  = 10 * time.Second
	collectAtMost = 5 * time.Minute
)

// Collect asks the network plugins for what they owe until nothing is owed. Whatever is new is
// asked for soon, whatever is old ever later.
func (c *Connector) Collect(ctx context.Context) {
	wait := collectEvery
	for {
		var again <-chan time.Time
		done := false
		guard.Run(ctx, "asking network plugins", func() { done = c.collectOnce(ctx) })
		if !done {
			again = time.After(wait)
			wait = min(2*wait, collectAtMost)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-c.collect:
			wait = collectEvery
		}
	}
}

// LookAgain wakes the collector.
func (c *Connector) LookAgain() {
	select {
	case c.collect <- struct{}{}:
	default:
	}
}

// collectOnce makes one round and says whether nothing is left to do.
func (c *Connector) collectOnce(ctx context.Context) bool {
	done := true
	for _, id := range c.Owed() {
		if err := c.Network.Teardown(ctx, cni.Pod{ID: id, NetNS: c.layout.NetNS(id)}); err != nil {
			log.G(ctx).WithField("pod", id).WithError(err).Warn("the network plugin still fails to release an address")
			done = false
		}
	}
	return done
}

// Owed returns the pods whose network is to be released. A pod whose processes may still use its
// addresses is not among them.
func (c *Connector) Owed() []string {
	return slices.DeleteFunc(c.Network.Debts(), func(id string) bool {
		r, ok := c.table.States.Get(id)
		return ok && r.State != store.PodNotReady || c.table.RecordUnread(id) != nil
	})
}
