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
)

// gcTimeout bounds one GC of all plugins. Pods that are being connected wait for it.
const gcTimeout = 10 * time.Second

// othersResults is where libcni keeps the results of other runtimes on this host.
var othersResults = filepath.Join(libcni.CacheDir, "results")

// CollectGarbage tells the plugins of the current network which attachments are in use (GC, since
// CNI 1.1.0), so that they give back everything else: leases of a DEL that never came. A list that
// lacks one attachment takes the network from a pod that runs, so it is called only when the list
// is certain to be complete: with every attachment that was begun and not undone, of whatever
// network, while none is being made. connected are pods that the caller knows to be connected, as a
// check. nil when the plugins were told, and where there is nothing to tell.
//
// Errors: ErrFailedPrecondition when what is owed cannot be read completely: never in the life of
// this process; ErrUnavailable when it may go better later; a plugin's refusal has no class.
func (n *Networks) CollectGarbage(ctx context.Context, connected []string) error {
	w, err := n.current(ctx)
	if err != nil {
		return err
	}
	list := w.chains[chainIndex(true, true)]
	if !hasStatus(w) || list.DisableGC {
		return nil
	}
	if err := n.debts.doubt(); err != nil {
		return fmt.Errorf("network %s: not every attachment is known: %w: %w", w.name, err, errdefs.ErrFailedPrecondition)
	}
	if err := n.usable(w); err != nil {
		return err
	}
	open, ok := n.gate.shut()
	if !ok {
		return fmt.Errorf("network %s: pods are being connected: %w", w.name, errdefs.ErrUnavailable)
	}
	defer open()
	inUse := n.debts.ids()
	for _, id := range connected {
		if !slices.Contains(inUse, id) {
			return fmt.Errorf("network %s: pod %s is connected and has no record: %w", w.name, id, errdefs.ErrUnavailable)
		}
	}
	if err := othersOn(n.others, w.name, inUse); err != nil {
		return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gcTimeout)
	defer cancel()
	n.step.Pass("cni.gc")
	return n.failed("GC", "", n.gc(ctx, list, inUse))
}

// gc tells all plugins. One that does not know the question has nothing to give back.
func (n *Networks) gc(ctx context.Context, list *libcni.NetworkConfigList, inUse []string) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range inUse {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	// In its own cache libcni would look for more to undo. What is to be undone is for the debts to
	// say: it sees none.
	plugins := libcni.NewCNIConfigWithCacheDir(n.c.BinDirs, filepath.Join(n.c.stateDir(), "no-cache"), &executor{})
	var errs []error
	for _, p := range list.Plugins {
		one := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion, Plugins: []*libcni.PluginConfig{p}}
		if err := plugins.GCNetworkList(ctx, one, args); err != nil && !unknownQuestion(err) {
			errs = append(errs, fmt.Errorf("network %s: plugin %s: GC: %w", list.Name, p.Network.Type, err))
		}
	}
	return errors.Join(errs...)
}

// othersOn names an attachment to the network that another runtime has made: only it knows which
// are in use.
func othersOn(folder, network string, ours []string) error {
	files, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("whether another runtime uses it: %w", err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), network+"-") {
			continue
		}
		path := filepath.Join(folder, f.Name())
		var result struct{ NetworkName, ContainerID string }
		data, err := readOptional(path)
		if err != nil {
			return fmt.Errorf("whether another runtime uses it: %w", err)
		}
		if data == nil || json.Unmarshal(data, &result) == nil && (result.NetworkName != network || slices.Contains(ours, result.ContainerID)) {
			continue
		}
		return fmt.Errorf("another runtime uses it, says %s", path)
	}
	return nil
}

// gate keeps GC and ADDs apart. It is not a lock: whoever waits gives up with its context.
type gate struct {
	mu     sync.Mutex
	inside int           // ADDs at work
	closed chan struct{} // until it is closed a GC is at work; nil = none is
}

// enter waits for the end of a GC. After nil leave must be called.
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

// shut lets nobody in until open is called. Not ok while somebody is inside.
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
