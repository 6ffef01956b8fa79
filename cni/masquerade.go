package cni

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/program"
)

// masquerade is one nftables table of this instance: packets that leave the subnet get the host's
// address. There is one rule for all pods instead of one per pod, so that nothing must be executed
// for a pod, and a pod can leave nothing behind.
type masquerade struct {
	table string
	keep  []netip.Prefix // packets to these keep the pod's address: pods of other nodes

	mu     sync.Mutex
	usable bool
	asked  time.Time     // when it was last found unusable
	turn   chan struct{} // held by the one writer of the table
}

func newMasquerade(table string, keep []netip.Prefix) *masquerade {
	return &masquerade{table: table, keep: keep, turn: make(chan struct{}, 1)}
}

// nftTimeout limits one run of nft: usually a millisecond, longer with a large ruleset.
const nftTimeout = 10 * time.Second

// askNftAgain is how long a failed check counts: nft may be in the middle of an upgrade, or memory
// short for a moment.
const askNftAgain = time.Minute

// works reports whether nft and the kernel accept such a table. A success counts forever.
func (m *masquerade) works(ctx context.Context) bool {
	m.mu.Lock()
	usable, lately := m.usable, time.Since(m.asked) < askNftAgain
	m.mu.Unlock()
	if usable || lately {
		return usable
	}
	err := m.nft(ctx, m.script([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}), "--check")
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.usable = true
	case ctx.Err() == nil:
		m.asked = time.Now()
	}
	return m.usable
}

// chain returns a name derived from the rules: if a chain of that name has a rule, it is the right
// one.
func (m *masquerade) chain(subnets []netip.Prefix) string {
	said := joinPrefixes(subnets)
	if len(m.keep) > 0 {
		said += ";" + joinPrefixes(m.keep)
	}
	return fmt.Sprintf("postrouting_%x", sha256.Sum256([]byte(said)))[:len("postrouting_")+8]
}

// script returns the nft commands that replace the table in one transaction.
func (m *masquerade) script(subnets []netip.Prefix) string {
	var s strings.Builder
	fmt.Fprintf(&s, "add table inet %s\ndelete table inet %s\n", m.table, m.table)
	fmt.Fprintf(&s, "table inet %s {\n chain %s {\n  type nat hook postrouting priority srcnat; policy accept;\n", m.table, m.chain(subnets))
	for _, p := range subnets {
		family, multicast := "ip", "224.0.0.0/4"
		if p.Addr().Is6() {
			family, multicast = "ip6", "ff00::/8"
		}
		fmt.Fprintf(&s, "  %s saddr %s %s daddr != { %s, %s }", family, p, family, p, multicast)
		for _, k := range m.keep { // not in the set, because its members must not overlap
			if k.Addr().Is6() == p.Addr().Is6() {
				fmt.Fprintf(&s, " %s daddr != %s", family, k)
			}
		}
		s.WriteString(" masquerade\n")
	}
	s.WriteString(" }\n}\n")
	return s.String()
}

// ensure creates the table if necessary. It asks the kernel first: normally nothing is executed,
// and after somebody has flushed the ruleset the next pod restores it.
func (m *masquerade) ensure(ctx context.Context, subnets []netip.Prefix) error {
	if present, err := m.present(subnets); err == nil && present {
		return nil
	}
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if present, err := m.present(subnets); err == nil && present {
		return nil
	}
	if err := m.nft(ctx, m.script(subnets)); err != nil {
		return fmt.Errorf("masquerade %s: %w", joinPrefixes(subnets), err)
	}
	return nil
}

// present reports whether the chain for subnets has its rules.
func (m *masquerade) present(subnets []netip.Prefix) (bool, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(m.table)))
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(m.chain(subnets))))
	rules, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return len(rules) >= len(subnets), err
}

// remove deletes the table, if there is one.
func (m *masquerade) remove(ctx context.Context) error {
	return m.nft(ctx, fmt.Sprintf("add table inet %s\ndelete table inet %s\n", m.table, m.table))
}

func (m *masquerade) nft(ctx context.Context, script string, flags ...string) error {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	_, err := program.RunTool(ctx, "nft", script, append(flags, "-f", "-")...)
	return err
}
