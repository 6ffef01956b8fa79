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
)

// masquerade is one nftables table of this instance: packets of the subnet that leave it take the
// host's address. One rule for all pods instead of one per pod: nothing to execute per pod, and
// nothing of a pod that could be left.
type masquerade struct {
	table string
	keep  []netip.Prefix // packets to these keep the pod's address: pods of other nodes

	mu     sync.Mutex
	usable bool
	asked  time.Time     // when it was not, last
	turn   chan struct{} // one writer of the table
}

func newMasquerade(table string, keep []netip.Prefix) *masquerade {
	return &masquerade{table: table, keep: keep, turn: make(chan struct{}, 1)}
}

// nftTimeout bounds one run of nft: a millisecond of work, more under a large ruleset.
const nftTimeout = 10 * time.Second

// askNftAgain is how long a no counts: nft may be being replaced, or the machine out of memory for
// a moment.
const askNftAgain = time.Minute

// works tells whether nft and the kernel accept such a table: a yes counts for ever.
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

// chain is named after what its rules say: a chain of that name with a rule is the right one.
func (m *masquerade) chain(subnets []netip.Prefix) string {
	said := joinPrefixes(subnets)
	if len(m.keep) > 0 {
		said += ";" + joinPrefixes(m.keep)
	}
	return fmt.Sprintf("postrouting_%x", sha256.Sum256([]byte(said)))[:len("postrouting_")+8]
}

// script replaces the table, in one transaction.
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
		for _, k := range m.keep { // not in the set, whose members must not overlap
			if k.Addr().Is6() == p.Addr().Is6() {
				fmt.Fprintf(&s, " %s daddr != %s", family, k)
			}
		}
		s.WriteString(" masquerade\n")
	}
	s.WriteString(" }\n}\n")
	return s.String()
}

// ensure makes the table right. It asks the kernel first, so that a ruleset flushed by somebody
// heals with the next pod and nothing is executed normally.
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

// present tells whether the chain for subnets has a rule.
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

// remove takes the table away, if there is one.
func (m *masquerade) remove(ctx context.Context) error {
	return m.nft(ctx, fmt.Sprintf("add table inet %s\ndelete table inet %s\n", m.table, m.table))
}

func (m *masquerade) nft(ctx context.Context, script string, flags ...string) error {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	_, err := runTool(ctx, "nft", script, append(flags, "-f", "-")...)
	return err
}
