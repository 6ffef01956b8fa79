package nat

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// batch collects the commands of one transaction.
type batch struct {
	c *nftables.Conn
	t *nftables.Table
}

// masquerade makes the chain of m with its rules, or replaces them.
func (b *batch) masquerade(m Masquerade) {
	chain := b.hook(m.chain(), nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, p := range m.Subnets {
		multicast := netip.MustParsePrefix("224.0.0.0/4")
		if p.Addr().Is6() {
			multicast = netip.MustParsePrefix("ff00::/8")
		}
		match := append(family(p.Addr()), within(source, p, true)...)
		match = append(append(match, within(destination, p, false)...), within(destination, multicast, false)...)
		for _, k := range m.Keep {
			if k.Addr().Is6() == p.Addr().Is6() {
				match = append(match, within(destination, k, false)...)
			}
		}
		b.rule(chain, "", append(match, &expr.Masq{}))
	}
}

// structure makes what the rules of all containers on the bridge have in common.
func (b *batch) structure(bridge string) {
	ports := b.c.AddChain(&nftables.Chain{Name: portsChain, Table: b.t})
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting,
		"output": nftables.ChainHookOutput} {
		b.rule(b.hook(name, hook, nftables.ChainPriorityNATDest), "", []expr.Any{
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name},
		})
	}
	b.c.AddChain(natChain(b.t, hairpinChain, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	b.guardLoopback(bridge)
}

// guardLoopback drops what containers send to 127.0.0.0/8 of the host. The kernel does that by
// itself, but not on a bridge that lets packets from 127.0.0.1 out (CVE-2020-8558).
func (b *batch) guardLoopback(bridge string) {
	chain := b.c.AddChain(&nftables.Chain{Name: "loopback", Table: b.t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	b.c.FlushChain(chain)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, bridge)
	match := append(family(loopback.Addr()),
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name})
	b.rule(chain, "", append(append(match, within(destination, loopback, true)...), &expr.Verdict{Kind: expr.VerdictDrop}))
}

// forward adds the rules of a container's address.
func (b *batch) forward(id string, to netip.Addr, ports []Port) {
	chain := &nftables.Chain{Name: portsChain, Table: b.t}
	served := false
	for _, p := range ports {
		if !p.serves(to) {
			continue
		}
		served = true
		match := family(to)
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			match = append(match, within(destination, netip.PrefixFrom(p.HostIP, p.HostIP.BitLen()), true)...)
		}
		b.rule(chain, id, append(match,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(p.Protocol)}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, p.Host)},
			&expr.Immediate{Register: 1, Data: to.AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, p.Container)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nfproto(to)), RegAddrMin: 1, RegProtoMin: 2},
		))
	}
	if !served {
		return
	}
	// A container that reaches itself through the host, and a program of the host that uses
	// 127.0.0.1, must get the replies by way of the host.
	from := []netip.Addr{to}
	if to.Is4() {
		from = append(from, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	hairpin := &nftables.Chain{Name: hairpinChain, Table: b.t}
	for _, a := range from {
		match := append(family(to), within(source, netip.PrefixFrom(a, a.BitLen()), true)...)
		match = append(match, within(destination, netip.PrefixFrom(to, to.BitLen()), true)...)
		b.rule(hairpin, id, append(match, &expr.Masq{}))
	}
}

// hook makes a chain that the kernel calls, without rules.
func (b *batch) hook(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	chain := b.c.AddChain(natChain(b.t, name, hook, priority))
	b.c.FlushChain(chain)
	return chain
}

func natChain(
	t *nftables.Table, name string, hook *nftables.ChainHook, priority *nftables.ChainPriority,
) *nftables.Chain {
	return &nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority}
}

func (b *batch) rule(chain *nftables.Chain, owner string, exprs []expr.Any) {
	r := &nftables.Rule{Table: b.t, Chain: chain, Exprs: exprs}
	if owner != "" {
		r.UserData = comment(owner)
	}
	b.c.AddRule(r)
}

func nfproto(a netip.Addr) byte {
	if a.Is6() {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// family matches packets of the address's family.
func family(a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfproto(a)}},
	}
}

// field is the place of an address in the headers of IPv4 and of IPv6.
type field struct{ v4, v6 uint32 }

var source, destination = field{12, 8}, field{16, 24}

// within matches packets whose address is in the prefix, or is not.
func within(f field, p netip.Prefix, in bool) []expr.Any {
	p = p.Masked()
	size := p.Addr().BitLen() / 8
	offset, op := f.v4, expr.CmpOpEq
	if p.Addr().Is6() {
		offset = f.v6
	}
	if !in {
		op = expr.CmpOpNeq
	}
	match := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset,
		Len: uint32(size)}}
	if p.Bits() < size*8 {
		match = append(match, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size),
			Mask: net.CIDRMask(p.Bits(), size*8), Xor: make([]byte, size)})
	}
	return append(match, &expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()})
}
