package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/cribox/cribox/cni/bridge"
	"github.com/cribox/cribox/cni/lease"
	"github.com/cribox/cribox/cni/namespace"
	"github.com/cribox/cribox/cni/nat"
	"github.com/cribox/cribox/cni/program"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/step"
)

// executor runs plugins for libcni. Those of the default network whose configuration has the key
// builtinKey are not programs: this process does what they would do.
//
// Apart from that key the configuration is the one of the standard plugins. So the DEL of an
// attachment depends only on its record: without the key it was made by programs, of an earlier
// version or on a kernel without nftables, and is undone by them. And an earlier version, which
// ignores the key, can undo what this one has made.
type executor struct {
	program.Executor
	own  *bridgeNetwork
	step step.Hook
}

const builtinKey = "builtin"

// FindInPath returns the bare name of a plugin that is in none of the folders and may be built in.
func (e *executor) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := e.Executor.FindInPath(plugin, dirs)
	if errors.Is(err, program.ErrNone) && (plugin == "bridge" || plugin == "portmap") {
		return plugin, nil
	}
	return path, err
}

// ExecPlugin does the work of a plugin that is built in, or runs it.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if !e.isBuiltin(stdin) {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("plugin %s %w in any of the folders of plugins", path, program.ErrNone)
		}
		return e.Executor.ExecPlugin(ctx, path, stdin, environ)
	}
	c := call{stdin: stdin, own: e.own, step: e.step}
	if err := json.Unmarshal(stdin, &c.conf); err != nil {
		return nil, err
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "CNI_COMMAND":
			c.command = value
		case "CNI_CONTAINERID":
			c.id = value
		case "CNI_NETNS":
			c.netns = value
		}
	}
	out, err := c.run(ctx)
	if err == nil {
		return out, nil
	}
	return nil, fmt.Errorf("%s: %w", c.conf.Type, err)
}

// isBuiltin reports whether this process does the work of the plugin with this configuration. The
// keys of other networks may mean anything.
func (e *executor) isBuiltin(stdin []byte) bool {
	if !bytes.Contains(stdin, []byte(`"`+builtinKey+`":true`)) {
		return false
	}
	var conf struct {
		Name    string `json:"name"`
		Builtin bool   `json:"builtin"`
	}
	return json.Unmarshal(stdin, &conf) == nil && conf.Builtin && conf.Name == e.own.name
}

// call is one call of a plugin that is built in.
type call struct {
	command, id, netns string

	conf  builtinConf
	stdin []byte
	own   *bridgeNetwork
	step  step.Hook
}

// builtinConf are the keys that the built-in plugins read, of those that bridgeConf and portmapConf
// write and libcni adds.
type builtinConf struct {
	CNIVersion  string `json:"cniVersion"`
	Name        string `json:"name"`
	Type        string `json:"type"`
	Bridge      string `json:"bridge"`
	MTU         int    `json:"mtu"`
	HairpinMode bool   `json:"hairpinMode"`
	IPAM        struct {
		DataDir string                `json:"dataDir"`
		Ranges  [][]map[string]string `json:"ranges"`
	} `json:"ipam"`
	RuntimeConfig struct {
		PortMappings []portMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
}

func (c *call) run(ctx context.Context) ([]byte, error) {
	ports := c.conf.Type == "portmap"
	switch c.command {
	case "ADD":
		if ports {
			return c.openPorts(ctx)
		}
		return c.connect(ctx)
	case "DEL":
		if ports {
			return nil, c.closePorts(ctx)
		}
		return nil, c.disconnect(ctx)
	case "GC":
		return nil, c.collect(ctx, ports)
	case "STATUS": // what pods need is checked by Ready
		return nil, nil
	}
	return nil, fmt.Errorf("no command %q", c.command)
}

func (c *call) owner() lease.Owner { return lease.Owner{ID: c.id, Link: ifName} }

func (c *call) leases() lease.Folder {
	return lease.Folder(filepath.Join(c.conf.IPAM.DataDir, c.conf.Name))
}

func (c *call) subnets() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, r := range c.conf.IPAM.Ranges {
		for _, one := range r {
			p, err := netip.ParsePrefix(one["subnet"])
			if err != nil {
				return nil, err
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// connect does what the plugins bridge and host-local do for ADD. If it fails, libcni's caller runs
// DEL.
func (c *call) connect(ctx context.Context) ([]byte, error) {
	subnets, err := c.subnets()
	if err != nil {
		return nil, err
	}
	addresses, err := c.leases().Take(ctx, c.owner(), subnets)
	if err != nil {
		return nil, err
	}
	c.step.Pass("cni.lease.taken")
	b := &bridge.Bridge{Name: c.conf.Bridge, MTU: c.conf.MTU, Hairpin: c.conf.HairpinMode}
	p := &bridge.Port{NetNS: c.netns, Bridge: c.conf.Bridge, ID: c.id, Inside: ifName}
	for i, s := range subnets {
		b.Gateways = append(b.Gateways, gateway(s))
		p.Addresses = append(p.Addresses, netip.PrefixFrom(addresses[i], s.Bits()))
		p.Gateways = append(p.Gateways, gateway(s).Addr())
		p.Routes = append(p.Routes, everything(s))
	}
	br, err := b.Ensure(ctx)
	if err != nil {
		return nil, err
	}
	c.step.Pass("cni.bridge.ready")
	host, err := c.plug(ctx, b, br, p)
	if err != nil {
		return nil, err
	}
	return c.result(br, host, p)
}

// everything is the default route of the subnet's family.
func everything(s netip.Prefix) netip.Prefix {
	if s.Addr().Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// plug makes the pod's links and sets up the one in its namespace. It returns that of the host.
func (c *call) plug(ctx context.Context, b *bridge.Bridge, br bridge.Link, p *bridge.Port) (bridge.Link, error) {
	host, err := b.Plug(ctx, br, p)
	if err != nil {
		return host, err
	}
	c.step.Pass("cni.link.made")
	var announcer *bridge.Announcer
	err = inside(ctx, p.NetNS, func() (err error) {
		announcer, err = p.Configure(ctx)
		return err
	})
	if err != nil {
		return host, err
	}
	defer announcer.Close()
	c.step.Pass("cni.link.configured")
	if err := bridge.AwaitUp(ctx, host); err != nil {
		return host, err
	}
	announcer.Send()
	return host, nil
}

// inside runs f on a thread in the namespace. A panic there costs this pod its network, not the
// daemon its life.
func inside(ctx context.Context, netns string, f func() error) error {
	return namespace.Run(netns, func() error { return guard.Call(ctx, "network namespace of a pod", f) })
}

// result is the one of the plugin bridge, in the version of the configuration.
func (c *call) result(br, host bridge.Link, p *bridge.Port) ([]byte, error) {
	res := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Interfaces: []*types100.Interface{
		{Name: br.Name, Mac: br.MAC.String()},
		{Name: host.Name, Mac: host.MAC.String()},
		{Name: p.Inside, Mac: p.MAC().String(), Sandbox: c.netns},
	}}
	for i, a := range p.Addresses {
		res.IPs = append(res.IPs, &types100.IPConfig{Interface: types100.Int(2), Address: *ipNet(a),
			Gateway: p.Gateways[i].AsSlice()})
		res.Routes = append(res.Routes, &types.Route{Dst: *ipNet(p.Routes[i])})
	}
	as, err := res.GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return nil, err
	}
	return json.Marshal(as)
}

// disconnect does what the plugins bridge and host-local do for DEL.
func (c *call) disconnect(ctx context.Context) error {
	p := &bridge.Port{NetNS: c.netns, Bridge: c.conf.Bridge, ID: c.id, Inside: ifName}
	if err := p.Unplug(ctx, func(f func() error) error { return inside(ctx, c.netns, f) }); err != nil {
		return err
	}
	c.step.Pass("cni.link.removed")
	// Last, so that no other pod gets the address while this one can still use it.
	if err := c.leases().Release(ctx, c.owner()); err != nil {
		return fmt.Errorf("release addresses: %w", err)
	}
	c.step.Pass("cni.lease.released")
	return nil
}

// openPorts does what the plugin portmap does for ADD.
func (c *call) openPorts(ctx context.Context) ([]byte, error) {
	prev, addresses, err := c.previous()
	if err != nil {
		return nil, err
	}
	if len(c.conf.RuntimeConfig.PortMappings) > 0 {
		if err := c.own.masq.table.Forward(ctx, c.own.bridge, c.id, addresses, c.ports()); err != nil {
			return nil, err
		}
		c.step.Pass("cni.ports.opened")
		if slices.ContainsFunc(addresses, netip.Addr.Is4) {
			if err := bridge.LetLoopbackOut(c.own.bridge); err != nil {
				return nil, err
			}
		}
	}
	as, err := prev.GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return nil, err
	}
	return json.Marshal(as)
}

// previous returns the result of the plugins before this one, and the first address of each family
// that it gives the pod.
func (c *call) previous() (*types100.Result, []netip.Addr, error) {
	var conf types.NetConf
	if err := json.Unmarshal(c.stdin, &conf); err != nil {
		return nil, nil, err
	}
	if conf.RawPrevResult == nil {
		return nil, nil, errors.New("no plugin before this one has connected the pod")
	}
	if err := version.ParsePrevResult(&conf); err != nil {
		return nil, nil, err
	}
	prev, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, nil, err
	}
	res, err := parseResult(prev)
	if err != nil {
		return nil, nil, err
	}
	var first []netip.Addr
	for _, a := range res.IPs {
		if !slices.ContainsFunc(first, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			first = append(first, a)
		}
	}
	return prev, first, nil
}

func (c *call) ports() []nat.Port {
	protocols := map[string]nat.Protocol{"tcp": nat.TCP, "udp": nat.UDP, "sctp": nat.SCTP}
	var all []nat.Port
	for _, m := range c.conf.RuntimeConfig.PortMappings {
		p := nat.Port{Protocol: protocols[m.Protocol], Host: uint16(m.HostPort), Container: uint16(m.ContainerPort)}
		p.HostIP, _ = netip.ParseAddr(m.HostIP) // "" is every address
		all = append(all, p)
	}
	return all
}

// closePorts does what the plugin portmap does for DEL.
func (c *call) closePorts(ctx context.Context) error {
	if err := c.own.masq.table.Withdraw(ctx, c.id, c.ports()); err != nil {
		return err
	}
	c.step.Pass("cni.ports.closed")
	return nil
}

// collect does what a plugin does for GC.
func (c *call) collect(ctx context.Context, ports bool) error {
	var ids []string
	var owners []lease.Owner
	for _, a := range c.conf.ValidAttachments {
		ids = append(ids, a.ContainerID)
		owners = append(owners, lease.Owner{ID: a.ContainerID, Link: a.IfName})
	}
	if ports {
		return c.own.masq.table.Collect(ctx, ids)
	}
	return c.leases().Collect(ctx, owners)
}
