package nat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol is the number of a protocol that has ports.
type Protocol uint8

// The protocols whose ports can be forwarded.
const (
	TCP  Protocol = unix.IPPROTO_TCP
	UDP  Protocol = unix.IPPROTO_UDP
	SCTP Protocol = unix.IPPROTO_SCTP
)

// Port is a port of the host that leads to a port of a container.
type Port struct {
	Protocol        Protocol
	HostIP          netip.Addr // zero: every address; unspecified: every address of its family
	Host, Container uint16
}

// serves reports whether the port leads to an address of this family.
func (p Port) serves(to netip.Addr) bool {
	return !p.HostIP.IsValid() || p.HostIP.Is4() == to.Is4()
}

const (
	portsChain   = "hostports"
	hairpinChain = "hairpin"
)

// Forward adds the rules of a container on the bridge that has these addresses, in one transaction.
// It also writes what the rules of all containers have in common, because somebody may have flushed
// it.
func (t Table) Forward(ctx context.Context, bridge, id string, addresses []netip.Addr, ports []Port) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	b := &batch{c: c, t: c.AddTable(t.table())}
	b.structure(bridge)
	for _, to := range addresses {
		b.forward(id, to, ports)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("forward ports: %w", err)
	}
	forget(ports)
	return nil
}

// Withdraw removes the rules of a container, in one transaction. Idempotent.
func (t Table) Withdraw(ctx context.Context, id string, ports []Port) error {
	if err := t.withdraw(ctx, func(owner string) bool { return owner == id }); err != nil {
		return fmt.Errorf("ports of %s: %w", id, err)
	}
	forget(ports)
	return nil
}

// Collect removes the rules of all containers that are not in the list.
func (t Table) Collect(ctx context.Context, inUse []string) error {
	return t.withdraw(ctx, func(owner string) bool { return !slices.Contains(inUse, owner) })
}

// withdrawTries is how often the rules are listed again when somebody else has removed one before
// the transaction could.
const withdrawTries = 5

func (t Table) withdraw(ctx context.Context, match func(owner string) bool) error {
	for i := 1; ; i++ {
		err := t.withdrawOnce(ctx, match)
		if !errors.Is(err, unix.ENOENT) || i == withdrawTries {
			return err
		}
	}
}

func (t Table) withdrawOnce(ctx context.Context, match func(owner string) bool) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	for _, chain := range []string{portsChain, hairpinChain} {
		rules, err := rulesOf(c, t.table(), chain)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if owner := commentOf(r); owner != "" && match(owner) {
				r.Table, r.Chain = t.table(), &nftables.Chain{Table: t.table(), Name: chain}
				if err := c.DelRule(r); err != nil {
					return err
				}
			}
		}
	}
	return c.Flush()
}

// Owners returns the ids of the containers that have rules, sorted.
func (t Table) Owners(ctx context.Context) ([]string, error) {
	c, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, chain := range []string{portsChain, hairpinChain} {
		rules, err := rulesOf(c, t.table(), chain)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if owner := commentOf(r); owner != "" {
				ids = append(ids, owner)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// udataComment is the type of a comment in the user data of a rule, as nft writes it: type, length,
// text, zero.
const udataComment = 0

func comment(text string) []byte {
	return append(append([]byte{udataComment, byte(len(text) + 1)}, text...), 0)
}

// commentOf returns the comment of a rule, "" if it has none.
func commentOf(r *nftables.Rule) string {
	for data := r.UserData; len(data) >= 2 && len(data) >= 2+int(data[1]); data = data[2+int(data[1]):] {
		if data[0] == udataComment {
			return string(bytes.TrimRight(data[2:2+int(data[1])], "\x00"))
		}
	}
	return ""
}

// forget removes what the kernel remembers of UDP packets to these ports: it would keep sending them
// to where the ports led before. A failure only means that it does so for half a minute.
func forget(ports []Port) {
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		if p.Protocol != UDP {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if f.AddProtocol(uint8(UDP)) == nil && f.AddPort(netlink.ConntrackOrigDstPort, p.Host) == nil {
			filters = append(filters, f)
		}
	}
	if len(filters) == 0 {
		return
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...)
	}
}
