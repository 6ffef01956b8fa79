package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/sandbox/store"
)

// collectGarbage has the network plugins give back, once after a start, what no pod uses. It waits
// as long as what is in use cannot be told for certain, and tries again later.
func (w *wires) collectGarbage(ctx context.Context) {
	said := ""
	for wait := collectEvery; ; wait = min(2*wait, collectAtMost) {
		err := w.network.CollectGarbage(ctx, w.connected())
		if err == nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			log.G(ctx).WithField("step", "cni").WithError(err).Info("the network plugins are not told yet which pods there are (GC)")
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
func (w *wires) connected() []string {
	var ids []string
	for _, r := range w.states.List() {
		if r.State == store.PodReady && r.NetNS != "" {
			ids = append(ids, r.ID)
		}
	}
	return ids
}
