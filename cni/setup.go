package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/cribox/cribox/cni/ledger"
	"github.com/cribox/cribox/cni/program"
)

// Setup connects the pod's network namespace to the current network and returns its addresses, at
// least one. If it fails, it undoes everything. What could not be undone is in Debts; the next
// Setup of the same pod, under any id, undoes it first or fails, unless it belongs to a network
// that the node no longer has.
//
// Errors: ErrInvalidArgument (values that no plugin may get), ErrUnavailable (no usable network, or
// an earlier attachment cannot be undone), ErrAlreadyExists (already connected),
// ErrResourceExhausted (no disk space for the record), context.DeadlineExceeded (plugin killed);
// the error of a plugin has no class.
func (n *Networks) Setup(ctx context.Context, pod Pod) (Result, error) {
	if err := pod.checkID(); err != nil {
		return Result{}, err
	}
	r, err := n.newRecord(&pod)
	if err != nil {
		return Result{}, err
	}
	release, err := n.turns.Take(ctx, pod.ID)
	if err != nil {
		return Result{}, err
	}
	defer release()
	if err := n.clearEarlier(ctx, r, pod); err != nil {
		return Result{}, err
	}
	list, arrived, err := n.prepare(ctx, &r)
	if err != nil {
		return Result{}, err
	}
	defer arrived()
	if err := n.gate.enter(ctx); err != nil {
		return Result{}, fmt.Errorf("network %s: wait for a GC to finish: %w", r.Network, err)
	}
	defer n.gate.leave()
	if err := n.debts.Begin(ctx, r); err != nil {
		return Result{}, err
	}
	n.step.Pass("cni.debt.written")
	res, err := n.add(ctx, list, r, pod)
	n.debts.SetOutcome(pod.ID, err == nil)
	if err == nil {
		return res, nil
	}
	err = n.failed("ADD", pod.ID, fmt.Errorf("network %s: %w", r.Network, err))
	return Result{}, errors.Join(err, n.disconnect(ctx, pod))
}

// newRecord validates and collects everything about the pod that a plugin may get.
func (n *Networks) newRecord(pod *Pod) (ledger.Record, error) {
	args, err := pod.args()
	if err != nil {
		return ledger.Record{}, err
	}
	caps, err := pod.capabilities(n.own.podCIDR())
	if err != nil {
		return ledger.Record{}, err
	}
	data, err := json.Marshal(caps)
	if err != nil {
		return ledger.Record{}, err
	}
	return ledger.Record{Format: ledger.Format, Pod: pod.ID, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		NetNS: pod.NetNS, Args: args, Capabilities: data}, nil
}

// clearEarlier undoes what earlier attempts for this pod left, so that retries never hold two
// leases.
func (n *Networks) clearEarlier(ctx context.Context, r ledger.Record, pod Pod) error {
	if d, ok := n.debts.Get(pod.ID); ok {
		if d.Attached {
			return fmt.Errorf("network %s: pod %s is connected: %w", d.Network, pod.ID, errdefs.ErrAlreadyExists)
		}
		if err := n.disconnect(ctx, pod); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
	}
	// Two attempts that wait for each other's turn must not wait forever.
	ctx, cancel := context.WithTimeout(ctx, n.c.Timeout)
	defer cancel()
	for _, id := range n.debts.Abandoned(r) {
		err := n.Teardown(ctx, Pod{ID: id, Lock: pod.Lock})
		if err != nil && !n.replaced(ctx, id) {
			return fmt.Errorf("cannot undo the earlier attempt %s: %w: %w", id, err, errdefs.ErrUnavailable)
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("pod", id).
				Warn("cannot undo an earlier attempt in a former network yet; will retry")
		}
	}
	return nil
}

// replaced reports whether a debt belongs to another network than the current one. The plugins of a
// replaced network may be gone for good, and its leases are no longer scarce.
func (n *Networks) replaced(ctx context.Context, id string) bool {
	w, err := n.current(ctx)
	d, owed := n.debts.Get(id)
	return err == nil && owed && d.Network != "" && d.Network != w.name
}

// prepare chooses the network and completes the record with it. The network's subnets cannot change
// until arrived is called.
func (n *Networks) prepare(
	ctx context.Context, r *ledger.Record,
) (list *libcni.NetworkConfigList, arrived func(), err error) {
	var has map[string]json.RawMessage
	if err := json.Unmarshal(r.Capabilities, &has); err != nil {
		return nil, nil, err
	}
	w, arrived, err := n.choose(ctx)
	if err != nil {
		return nil, nil, err
	}
	if w.ours {
		if err := n.own.prepare(ctx, w.subnets); err != nil {
			arrived()
			return nil, nil, fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
		}
	}
	_, noShaper := program.Find("bandwidth", n.c.BinDirs)
	if has["bandwidth"] != nil && noShaper != nil && !errors.Is(noShaper, program.ErrNone) {
		arrived()
		return nil, nil, fmt.Errorf("network %s: %w: %w", w.name, noShaper, errdefs.ErrUnavailable)
	}
	list = w.chains[chainIndex(has["portMappings"] != nil, has["bandwidth"] != nil && noShaper == nil)]
	r.Network, r.Conf, r.Default = list.Name, list.Bytes, !w.foreign
	return list, arrived, nil
}

// choose returns the current network. If it is ours, its subnets cannot change until arrived is
// called.
func (n *Networks) choose(ctx context.Context) (w *network, arrived func(), err error) {
	for range joinTries {
		if w, err = n.current(ctx); err != nil {
			return nil, nil, err
		}
		if err := n.complete(w); err != nil {
			return nil, nil, err
		}
		if !w.ours {
			return w, func() {}, nil
		}
		if n.own.join(w.subnets) {
			return w, n.own.leave, nil
		}
		// The subnets are being changed, which takes less than joinTries pauses.
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(joinPause):
		}
	}
	return nil, nil, fmt.Errorf("network %s: its state is for a subnet other than %s: %w", w.name,
		joinPrefixes(n.own.subnets()), errdefs.ErrUnavailable)
}

const (
	joinPause = 5 * time.Millisecond
	joinTries = 200
)

// add runs the ADD of the chain.
func (n *Networks) add(ctx context.Context, list *libcni.NetworkConfigList, r ledger.Record, pod Pod) (Result, error) {
	rt, err := runtimeConf(r, r.NetNS)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.c.Timeout)
	defer cancel()
	n.step.Pass("cni.add")
	res, err := n.plugins(pod).AddNetworkList(ctx, list, rt)
	if err != nil {
		return Result{}, err
	}
	n.step.Pass("cni.added")
	return parseResult(res)
}

func (n *Networks) plugins(pod Pod) *libcni.CNIConfig {
	return n.pluginsWith(n.c.cacheDir(), pod)
}

func (n *Networks) pluginsWith(cacheDir string, pod Pod) *libcni.CNIConfig {
	run := &executor{Executor: program.Executor{Lock: pod.Lock}, own: n.own, step: n.step}
	return libcni.NewCNIConfigWithCacheDir(n.c.BinDirs, cacheDir, run)
}

func runtimeConf(r ledger.Record, netns string) (*libcni.RuntimeConf, error) {
	rt := &libcni.RuntimeConf{ContainerID: r.Pod, NetNS: netns, IfName: ifName, Args: r.Args}
	if len(r.Capabilities) > 0 {
		if err := json.Unmarshal(r.Capabilities, &rt.CapabilityArgs); err != nil {
			return nil, err
		}
	}
	return rt, nil
}

// parseResult returns the addresses of the pod's own interface. A result with none, or with one
// that a pod cannot use, is an error.
func parseResult(res types.Result) (Result, error) {
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return Result{}, fmt.Errorf("result: %w", err)
	}
	var out Result
	for _, c := range r.IPs {
		if c == nil || !inSandbox(r, c) {
			continue
		}
		p, ok := prefixOf(&c.Address)
		if !ok || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().IsLoopback() {
			return Result{}, fmt.Errorf("result: %q is not an address for a pod", c.Address.String())
		}
		if !slices.Contains(out.IPs, p.Addr()) {
			out.IPs = append(out.IPs, p.Addr())
		}
	}
	if len(out.IPs) == 0 {
		return Result{}, errors.New("result: no address")
	}
	return out, nil
}

// inSandbox reports whether the result assigns the address to the pod's own interface, not to one
// of the host or a further one of the pod.
func inSandbox(r *types100.Result, c *types100.IPConfig) bool {
	if c.Interface == nil || *c.Interface < 0 || *c.Interface >= len(r.Interfaces) {
		return true
	}
	i := r.Interfaces[*c.Interface]
	return i == nil || i.Sandbox != "" && (i.Name == "" || i.Name == ifName)
}
