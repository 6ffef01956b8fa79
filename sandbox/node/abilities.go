package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim"
)

// askEvery is how long after a question without an answer it is asked again, doubled up to
// askAtMost.
const (
	askEvery  = time.Second
	askAtMost = 10 * time.Minute
	// firstAnswer is how long the start of the daemon waits for the runtimes. On a slow machine that
	// may be too short; then they are asked again in the background, with the longer limit that the
	// question itself has.
	firstAnswer = 5 * time.Second
)

// abilities is what this machine and the OCI runtimes can do, as far as they said so. It never
// changes.
type abilities struct {
	noUserNS error              // why this machine has no user namespaces for pods
	noTmpfs  error              // why they can have no tmpfs volume, which another try does not change
	byName   map[string]ability // of a handler's runtime
	asked    time.Time
	wait     time.Duration // until what is not known may be asked again
}

// ability is what a runtime said, or why it did not.
type ability struct {
	runtimeshim.Features
	err error
}

// complete says whether every question has an answer.
func (a *abilities) complete() bool {
	for _, one := range a.byName {
		if one.err != nil {
			return false
		}
	}
	return a.noUserNS == nil
}

// noUserNamespaces says why the pods of a handler can have no user namespace; "" when they can.
func (a *abilities) noUserNamespaces(handler string, h Handler) string {
	can := a.byName[handler]
	switch {
	case a.noUserNS != nil:
		return a.noUserNS.Error()
	case can.err != nil:
		return can.err.Error()
	case !can.UserNamespaces || !can.IDMappedMounts:
		return filepath.Base(h.Path) + " has no user namespaces with id-mapped mounts (runc has them from 1.2 on)"
	}
	return ""
}

// ask asks this machine and all runtimes at the same time, but not again for what before, which may
// be nil, knows of the same program.
func (n *Node) ask(ctx context.Context, byName map[string]Handler, before *abilities) *abilities {
	next := &abilities{byName: map[string]ability{}, wait: askEvery}
	if before != nil {
		next.wait = min(2*before.wait, askAtMost)
	}
	var mu sync.Mutex // guards next.byName
	var all sync.WaitGroup
	for name, h := range byName {
		if before != nil && before.byName[name].err == nil {
			next.byName[name] = before.byName[name]
			continue
		}
		all.Go(func() {
			var f runtimeshim.Features
			err := guard.Call(ctx, "features of a runtime",
				func() (err error) { f, err = n.conf.Features(ctx, h.Path); return err })
			mu.Lock()
			defer mu.Unlock()
			next.byName[name] = ability{f, err}
		})
	}
	if before == nil || before.noUserNS != nil {
		next.noTmpfs, next.noUserNS = n.tryUserNamespace()
	} else {
		next.noTmpfs = before.noTmpfs
	}
	all.Wait()
	next.asked = time.Now()
	next.tell(ctx, byName, before)
	return next
}

// tell logs what changed for whoever wonders why a feature is not there. A program that has an
// answer and lacks something is no warning.
func (a *abilities) tell(ctx context.Context, byName map[string]Handler, before *abilities) {
	if text(a.noUserNS) != text(before.machine()) {
		if a.noUserNS != nil {
			log.G(ctx).WithError(a.noUserNS).Warn("user namespaces are not available for pods; will retry")
		} else {
			log.G(ctx).Info("user namespaces are now available for pods")
		}
	}
	if a.noTmpfs != nil && before == nil {
		log.G(ctx).WithError(a.noTmpfs).Warn("user namespaces are not offered to the kubelet")
	}
	for name, can := range a.byName {
		l := log.G(ctx).WithField("handler", name)
		var was error
		if before != nil {
			was = before.byName[name].err
		}
		switch {
		case can.err == nil && (before == nil || was != nil):
			if why := a.noUserNamespaces(name, byName[name]); why != "" && a.noUserNS == nil {
				l.Infof("user namespaces are not available for its pods: %s", why)
			} else if was != nil {
				l.Info("its runtime now reports its features")
			}
		case text(can.err) == text(was):
		case errors.Is(can.err, errdefs.ErrNotImplemented):
			l.WithError(can.err).Info("its runtime does not report its features: no user namespaces, " +
				"no recursive read-only mounts")
		default:
			l.WithError(can.err).Warn("cannot read the features of its runtime now; " +
				"until then, no user namespaces and no recursive read-only mounts")
		}
	}
}

func (a *abilities) machine() error {
	if a == nil {
		return nil
	}
	return a.noUserNS
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// AskAgain asks once more, without waiting, for what machine and runtimes have not said yet, if the
// last time is long enough ago: what fails for want of descriptors or time must not cost a feature
// until the next start.
func (n *Node) AskAgain() {
	now := n.handlers.Load()
	if now.can.complete() || time.Since(now.can.asked) < now.can.wait || !n.asking.CompareAndSwap(false, true) {
		return
	}
	go n.askNow(now)
}

// askAtOnce is AskAgain without a wait, if a runtime was too slow for the first question.
func (n *Node) askAtOnce() {
	now := n.handlers.Load()
	for _, one := range now.can.byName {
		if errors.Is(one.err, context.DeadlineExceeded) && n.asking.CompareAndSwap(false, true) {
			go n.askNow(now)
			return
		}
	}
}

func (n *Node) askNow(now *handlers) {
	defer n.asking.Store(false)
	guard.Run(n.background, "features of the runtimes", func() {
		next := *now
		next.can = n.ask(n.background, now.byName, now.can)
		n.handlers.CompareAndSwap(now, &next) // unless all handlers were replaced meanwhile, who were asked anew
	})
}

// Flaws returns an error that names every handler whose OCI runtime is a version that is known to
// let containers out; nil when none is.
func (n *Node) Flaws() error {
	var all []string
	for name, can := range n.handlers.Load().can.byName {
		if can.Flaw != "" {
			all = append(all, fmt.Sprintf("runtime %s is runc %s: %s", name, can.Version, can.Flaw))
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	return fmt.Errorf("%s; %s", strings.Join(all, "; "), runtimeshim.RuncAdvice)
}

// Features returns what the OCI runtime of each handler said that it can do, or why nothing is
// known.
func (n *Node) Features() map[string]any {
	all := map[string]any{}
	for name, can := range n.handlers.Load().can.byName {
		if all[name] = can.Features; can.err != nil {
			all[name] = map[string]string{"error": can.err.Error()}
		}
	}
	return all
}
