package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/cribox/cribox/cni/lease"
)

// gcTimeout limits one GC of all plugins. Pods that are being connected wait for it.
const gcTimeout = 10 * time.Second

// othersResults is where libcni stores the results of other runtimes on this host.
var othersResults = filepath.Join(libcni.CacheDir, "results")

// CollectGarbage sends the current network's plugins the list of attachments in use (GC, since CNI
// 1.1.0), so that they release everything else: leases whose DEL never came. The default network
// does the same in any version. If the list lacked an attachment, a running pod would lose its
// network. So GC runs only when the list is certain to be complete: it has every attachment of any
// network that was begun and not undone, and none is being made. connected are pods that the caller
// knows to be connected, as a check. It returns nil when the plugins were called, and when there is
// nothing to call.
//
// Errors: ErrFailedPrecondition when the debts cannot be read completely, so that no retry by this
// process can succeed; ErrUnavailable when a retry may succeed; the error of a plugin has no class.
func (n *Networks) CollectGarbage(ctx context.Context, connected []string) error {
	w, err := n.current(ctx)
	if err != nil {
		return err
	}
	list := w.chains[chainIndex(true, true)]
	if !hasStatus(w) && !w.builtin || list.DisableGC {
		return nil
	}
	if err := n.debts.Complete(); err != nil {
		return fmt.Errorf("network %s: cannot know all attachments: %w: %w", w.name, err, errdefs.ErrFailedPrecondition)
	}
	if err := n.usable(w); err != nil {
		return err
	}
	open, ok := n.gate.shut()
	if !ok {
		return fmt.Errorf("network %s: pods are being connected: %w", w.name, errdefs.ErrUnavailable)
	}
	defer open()
	inUse := n.debts.IDs()
	for _, id := range connected {
		if !slices.Contains(inUse, id) {
			return fmt.Errorf("network %s: pod %s is connected but has no record: %w", w.name, id, errdefs.ErrUnavailable)
		}
	}
	if err := othersOn(n.others, w.name, inUse); err != nil {
		return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gcTimeout)
	defer cancel()
	n.step.Pass("cni.gc")
	err = n.gc(ctx, list, inUse)
	if w.builtin && !hasStatus(w) {
		err = n.own.collect(ctx, inUse) // libcni has no GC for this version
	}
	return n.failed("GC", "", err)
}

// collect releases what the default network holds for pods that are not in use: leases, and ports
// of the host.
func (b *bridgeNetwork) collect(ctx context.Context, inUse []string) error {
	var owners []lease.Owner
	for _, id := range inUse {
		owners = append(owners, lease.Owner{ID: id, Link: ifName})
	}
	return errors.Join(b.leases().Collect(ctx, owners), b.masq.table.Collect(ctx, inUse))
}

// gc calls GC of all plugins. It ignores plugins that do not know GC.
func (n *Networks) gc(ctx context.Context, list *libcni.NetworkConfigList, inUse []string) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range inUse {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	// With its own cache libcni would search for more to undo. Only the debts decide that, so it
	// gets an empty one.
	plugins := n.pluginsWith(filepath.Join(n.c.stateDir(), "no-cache"), Pod{})
	var errs []error
	for _, p := range list.Plugins {
		one := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion, Plugins: []*libcni.PluginConfig{p}}
		if err := plugins.GCNetworkList(ctx, one, args); err != nil && !unknownQuestion(err) {
			errs = append(errs, fmt.Errorf("network %s: plugin %s: GC: %w", list.Name, p.Network.Type, err))
		}
	}
	return errors.Join(errs...)
}

// othersOn returns an error if another runtime has made an attachment to the network: only that
// runtime knows which of its attachments are in use.
func othersOn(folder, network string, ours []string) error {
	files, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for other runtimes that use it: %w", err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), network+"-") {
			continue
		}
		path := filepath.Join(folder, f.Name())
		var result struct{ NetworkName, ContainerID string }
		data, err := readOptional(path)
		if err != nil {
			return fmt.Errorf("look for other runtimes that use it: %w", err)
		}
		if data == nil || json.Unmarshal(data, &result) == nil &&
			(result.NetworkName != network || slices.Contains(ours, result.ContainerID)) {
			continue
		}
		return fmt.Errorf("another runtime uses it, according to %s", path)
	}
	return nil
}

// gate keeps GC and ADD from running at the same time. Unlike with a mutex, waiting ends with the
// context.
type gate struct {
	mu     sync.Mutex
	inside int           // ADDs in progress
	closed chan struct{} // closed at the end of the GC in progress; nil = none
}

// enter waits for the end of a GC. If it returns nil, leave must be called.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		closed := g.closed
		if closed == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-closed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
}

// shut blocks enter until open is called. ok is false while an ADD or another GC is in progress.
func (g *gate) shut() (open func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside > 0 || g.closed != nil {
		return nil, false
	}
	closed := make(chan struct{})
	g.closed = closed
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.closed = nil
		close(closed)
	}, true
}
