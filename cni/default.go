package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/cribox/cribox/cni/lease"
)

// bridgeNetwork is the default network: a bridge of this instance, managed by the standard plugins.
type bridgeNetwork struct {
	name     string // of the network
	bridge   string // of the link
	leaseDir string
	cidrFile string
	masq     *masquerade
	// wanted: a configuration file names this network, or it is the default and no file names one.
	wanted atomic.Bool
	mtu    atomic.Int64 // of the uplink, last known value

	mu     sync.Mutex
	subnet []netip.Prefix // current; empty while it must be set by the kubelet and is not
	told   bool           // subnet is the pod CIDR
	// joining counts the pods that are being connected in subnet, which the bridge may not show
	// yet.
	joining  int
	changing bool // subnet is about to change; no pod may join
}

func newBridgeNetwork(c Config) (*bridgeNetwork, error) {
	b := &bridgeNetwork{
		name: "cribox-" + c.Instance, bridge: "cbr" + c.Instance,
		leaseDir: c.leaseDir(), cidrFile: PodCIDRFile(c.State),
		masq: newMasquerade(tableName(c.Instance), c.NoMasquerade),
	}
	if c.Subnet != PodCIDR {
		subnet, err := parseSubnets(c.Subnet)
		if err != nil {
			return nil, err
		}
		b.subnet = subnet
	}
	saved, err := readOptional(b.cidrFile)
	if err != nil {
		return nil, fmt.Errorf("read pod CIDR: %w", err)
	}
	if subnet, err := parseSubnets(strings.TrimSpace(string(saved))); err == nil {
		b.subnet, b.told = subnet, true
	}
	return b, nil
}

// leases is where this network's leases are, and those of its earlier versions.
func (b *bridgeNetwork) leases() lease.Folder {
	return lease.Folder(filepath.Join(b.leaseDir, b.name))
}

func (b *bridgeNetwork) subnets() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.subnet
}

// podCIDR returns the subnet if it was set as the pod CIDR, for plugins that want ranges; otherwise
// nil.
func (b *bridgeNetwork) podCIDR() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.told {
		return nil
	}
	return b.subnet
}

// join registers a pod that begins to connect in subnets, until leave is called. It returns false
// if these are not the current subnets, or are about to change.
func (b *bridgeNetwork) join(subnets []netip.Prefix) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changing || joinPrefixes(subnets) != joinPrefixes(b.subnet) {
		return false
	}
	b.joining++
	return true
}

func (b *bridgeNetwork) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joining--
}

// hold prevents join until release is called. ErrFailedPrecondition while a pod is being connected.
func (b *bridgeNetwork) hold() (release func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.changing:
		return nil, fmt.Errorf("it is already being changed: %w", errdefs.ErrFailedPrecondition)
	case b.joining > 0:
		return nil, fmt.Errorf("%d pods are being attached to %s: %w",
			b.joining, joinPrefixes(b.subnet), errdefs.ErrFailedPrecondition)
	}
	b.changing = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.changing = false
	}, nil
}

// setPodCIDR changes the subnet. Pods keep their addresses for life, so it fails while pods are
// connected, or are being connected, in another subnet.
func (b *bridgeNetwork) setPodCIDR(subnets []netip.Prefix) error {
	if joinPrefixes(subnets) != joinPrefixes(b.subnets()) {
		release, err := b.hold()
		if err != nil {
			return fmt.Errorf("pod CIDR %s: %w", joinPrefixes(subnets), err)
		}
		defer release()
		busy, err := b.attached()
		if err != nil {
			return err
		}
		if busy > 0 {
			return fmt.Errorf("pod CIDR %s: %d pods are attached to %s: %w", joinPrefixes(subnets), busy,
				cmp.Or(joinPrefixes(b.subnets()), "another"), errdefs.ErrFailedPrecondition)
		}
	}
	if err := writeFile(b.cidrFile, []byte(joinPrefixes(subnets)+"\n")); err != nil {
		return fmt.Errorf("save pod CIDR: %w", err)
	}
	b.mu.Lock()
	b.subnet, b.told = subnets, true
	b.mu.Unlock()
	return nil
}

func joinPrefixes(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// network returns the default network when no file configures it.
func (b *bridgeNetwork) network(ctx context.Context, subnets []netip.Prefix) (*network, error) {
	list, err := parseList([]byte(`{"cniVersion":"1.0.0","name":"` + b.name + `","plugins":[{"type":"` + ownType + `"}]}`))
	if err != nil {
		return nil, err
	}
	return b.translate(ctx, "", list, subnets)
}

// unnamed returns the reason why there is no subnet.
func (b *bridgeNetwork) unnamed() error {
	if busy, err := b.attached(); err == nil && busy > 0 {
		return fmt.Errorf("%d pods still have addresses of an earlier range on %s; "+
			"the kubelet's range can be used once they are removed",
			busy, b.bridge)
	}
	return errors.New("the kubelet has not set the pod CIDR of this node yet")
}

// translate replaces our own plugin type by the standard plugins. The network gets our name, by
// which leases and rules are found.
func (b *bridgeNetwork) translate(ctx context.Context,
	file string, list *libcni.NetworkConfigList, subnets []netip.Prefix) (*network, error) {
	b.wanted.Store(true)
	if len(subnets) == 0 {
		return nil, b.unnamed()
	}
	w := &network{name: b.name, file: file, version: list.CNIVersion, ours: true, subnets: subnets,
		builtin: b.masq.works(ctx)}
	if n := count(list, ownType); n > 1 {
		return nil, fmt.Errorf("plugin type %s occurs %d times", ownType, n)
	}
	nft := w.builtin
	if !nft && len(b.masq.keep) > 0 {
		return nil, fmt.Errorf("ranges without masquerading need nftables: %w", b.masq.reason())
	}
	var programs []string
	if !nft {
		programs = []string{"bridge", "host-local", "portmap"}
	}
	for i := range w.chains {
		var chain []json.RawMessage
		w.foreign, w.needs = false, programs[:len(programs):len(programs)]
		for _, p := range list.Plugins {
			if p.Network.Type != ownType {
				w.foreign = true
				w.needs = append(w.needs, p.Network.Type)
				chain = append(chain, p.Bytes)
				continue
			}
			chain = append(chain, b.bridgeConf(subnets, nft))
			if i&1 != 0 {
				chain = append(chain, portmapConf(nft))
			}
		}
		if i&2 != 0 && !w.foreign {
			chain = append(chain, json.RawMessage(`{"type":"bandwidth","capabilities":{"bandwidth":true}}`))
		}
		built, err := withPlugins(list, b.name, chain)
		if err != nil {
			return nil, err
		}
		if _, err := newNetwork(file, built); err != nil {
			return nil, err
		}
		w.chains[i] = built
	}
	return w, nil
}

func count(list *libcni.NetworkConfigList, plugin string) (n int) {
	for _, p := range list.Plugins {
		if p.Network.Type == plugin {
			n++
		}
	}
	return n
}

func (b *bridgeNetwork) bridgeConf(subnets []netip.Prefix, nft bool) json.RawMessage {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, p := range subnets {
		ranges = append(ranges, []map[string]string{{"subnet": p.String()}})
		all := "0.0.0.0/0"
		if p.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, map[string]string{"dst": all})
	}
	conf := map[string]any{
		"type": "bridge", "bridge": b.bridge, "isGateway": true, "hairpinMode": true,
		"ipMasq": !nft, // with nft one rule of ours serves the whole subnet
		"ipam":   map[string]any{"type": "host-local", "dataDir": b.leaseDir, "ranges": ranges, "routes": routes},
	}
	if nft {
		conf[builtinKey] = true
	}
	if mtu := b.uplinkMTU(); mtu > 0 {
		conf["mtu"] = mtu
	}
	return mustJSON(conf)
}

func portmapConf(nft bool) json.RawMessage {
	conf := map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}
	if nft {
		conf["backend"], conf[builtinKey] = "nftables", true
	}
	return mustJSON(conf)
}

func mustJSON(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		// Cannot happen: all values are maps of strings, numbers and booleans of this file.
		panic(err)
	}
	return data
}

// check returns the reason why no pod can be connected in subnets: another route overlaps them, or
// our bridge serves other subnets. nil if there is none.
func (b *bridgeNetwork) check(subnets []netip.Prefix) error {
	serving, _, err := b.survey(subnets)
	if err != nil || serving {
		return err
	}
	return b.overlap(subnets)
}

// prepare prepares the host for an ADD: it removes a bridge of another subnet, and adds masquerading
// or, for the plugins, IPv6 gateways.
func (b *bridgeNetwork) prepare(ctx context.Context, subnets []netip.Prefix) error {
	serving, stale, err := b.survey(subnets)
	if err != nil {
		return err
	}
	if stale != nil {
		if err := netlink.LinkDel(stale); err != nil && !isGone(err) {
			return fmt.Errorf("remove bridge %s of another subnet: %w", b.bridge, err)
		}
	}
	if !serving {
		if err := b.overlap(subnets); err != nil {
			return err
		}
	}
	if b.masq.works(ctx) {
		return b.masq.ensure(ctx, subnets)
	}
	return b.raise(ctx, subnets)
}

// RemoveDefault removes what the default network leaves on a host: bridge, lease folder,
// masquerading. Call it after the last pod is gone: ErrFailedPrecondition while a pod is attached
// or has a debt. Idempotent.
func (n *Networks) RemoveDefault(ctx context.Context) error {
	if ids := n.debts.OfNetwork(n.own.name); len(ids) > 0 {
		return fmt.Errorf("remove default network: %d pods are attached, for example %s: %w",
			len(ids), ids[0], errdefs.ErrFailedPrecondition)
	}
	busy, err := n.own.attached()
	if err != nil {
		return fmt.Errorf("remove default network: %w", err)
	}
	if busy > 0 {
		return fmt.Errorf("remove default network: %d links are attached to %s: %w",
			busy, n.own.bridge, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.c.Timeout)
	defer cancel()
	if err := errors.Join(n.own.removeBridge(), n.own.removeMasquerade(ctx),
		n.own.removeFiles(n.c.cacheDir())); err != nil {
		return fmt.Errorf("remove default network: %w", err)
	}
	return nil
}

func (b *bridgeNetwork) removeMasquerade(ctx context.Context) error {
	if b.masq.works(ctx) {
		return b.masq.remove(ctx)
	}
	return removePodRules(ctx, b.name, "")
}

// removeFiles removes the leases, and the results that libcni cached for this network.
func (b *bridgeNetwork) removeFiles(cacheDir string) error {
	results, err := filepath.Glob(filepath.Join(cacheDir, "results", b.name+"-*"))
	errs := []error{err, os.RemoveAll(b.leaseDir)}
	for _, file := range results {
		errs = append(errs, os.RemoveAll(file))
	}
	return errors.Join(errs...)
}
