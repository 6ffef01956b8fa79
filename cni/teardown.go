package cni

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/log"
	"github.com/containernetworking/cni/libcni"

	"github.com/cribox/cribox/cni/ledger"
	"github.com/cribox/cribox/cni/namespace"
)

// Teardown disconnects the pod: it runs DEL with the configuration, arguments and capabilities of
// the ADD, whatever the configuration folder contains now, and with an empty namespace if the
// pinned one is gone. It has a deadline of its own. It returns nil when the pod has no debt any
// more, or never had one. After an error the debt stays, and Teardown must be called again. Only ID
// and Lock of pod are used.
func (n *Networks) Teardown(ctx context.Context, pod Pod) error {
	if err := pod.checkID(); err != nil {
		return err
	}
	release, err := n.turns.Take(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer release()
	return n.disconnect(ctx, pod)
}

// disconnect is Teardown for callers that have the pod's turn.
func (n *Networks) disconnect(ctx context.Context, pod Pod) error {
	d, ok, err := n.debts.Read(ctx, pod.ID)
	if err != nil || !ok {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.c.Timeout)
	defer cancel()
	n.step.Pass("cni.del")
	if err := n.del(ctx, &d, pod); err != nil {
		return n.failed("DEL", pod.ID, fmt.Errorf("network %s: %w", d.Network, err))
	}
	n.step.Pass("cni.deleted")
	if err := n.debts.Clear(ctx, pod.ID); err != nil {
		log.G(ctx).WithError(err).WithField("pod",
			pod.ID).Warn("cannot record that a network attachment was released; it will be released again after a restart")
	}
	n.step.Pass("cni.debt.cleared")
	return nil
}

func (n *Networks) del(ctx context.Context, d *ledger.Debt, pod Pod) error {
	list, err := n.listOf(ctx, d)
	if err != nil {
		return err
	}
	pinned, err := namespace.Is(d.NetNS)
	if err != nil {
		return err
	}
	netns := ""
	if pinned {
		netns = d.NetNS
	}
	rt, err := runtimeConf(d.Record, netns)
	if err != nil {
		return err
	}
	if err := n.plugins(pod).DelNetworkList(ctx, list, rt); err != nil {
		return err
	}
	if d.Network == n.own.name && bytes.Contains(d.Conf, []byte(`"ipMasq":true`)) {
		// The plugin silently leaves its rules if the pod's link is gone.
		return removePodRules(ctx, d.Network, d.Pod)
	}
	return nil
}

// listOf returns the configuration of the ADD; for a damaged record, the most likely one.
func (n *Networks) listOf(ctx context.Context, d *ledger.Debt) (*libcni.NetworkConfigList, error) {
	if len(d.Conf) > 0 {
		return libcni.NetworkConfFromBytes(d.Conf)
	}
	var w *network
	var err error
	if d.Default {
		subnets := n.own.subnets()
		if len(subnets) == 0 { // not set by the kubelet yet; DEL depends only on the pod
			subnets = []netip.Prefix{netip.MustParsePrefix(defaultSubnet)}
		}
		w, err = n.own.network(ctx, subnets)
	} else {
		w, err = n.current(ctx)
	}
	if err != nil {
		return nil, err
	}
	list := w.chains[chainIndex(true, true)]
	d.Network = list.Name
	return list, nil
}
