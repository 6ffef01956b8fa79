package nat

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table is the table with this name, of the family inet.
type Table string

// Masquerade says whose packets get the host's address: those of Subnets to addresses outside of
// their own subnet and of Keep.
type Masquerade struct{ Subnets, Keep []netip.Prefix }

const masqueradePrefix = "postrouting_"

// chain returns a name derived from the rules: if a chain of that name has its rules, they are the
// right ones.
func (m Masquerade) chain() string {
	said := join(m.Subnets)
	if len(m.Keep) > 0 {
		said += ";" + join(m.Keep)
	}
	return fmt.Sprintf("%s%x", masqueradePrefix, sha256.Sum256([]byte(said)))[:len(masqueradePrefix)+8]
}

func join(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// maxPatience limits a transaction: usually a millisecond, longer with a large ruleset.
const maxPatience = 10 * time.Second

// connect returns a connection whose waits end with ctx.
func connect(ctx context.Context) (*nftables.Conn, error) {
	end := time.Now().Add(maxPatience)
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(end) {
		end = earlier
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetDeadline(end) }))
}

func (t Table) table() *nftables.Table {
	return &nftables.Table{Name: string(t), Family: nftables.TableFamilyINet}
}

// Probe returns the reason why the kernel does not accept such a table; nil if it does. It makes and
// deletes a table in one transaction, so that nothing of it is ever seen.
func Probe(ctx context.Context, t Table) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	b := &batch{c: c, t: (t + "_probe").table()}
	c.AddTable(b.t)
	b.masquerade(Masquerade{Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30"),
		netip.MustParsePrefix("fd00::/64")}})
	b.structure("probe")
	for _, to := range []string{"10.0.0.2", "fd00::2"} {
		b.forward("probe", netip.MustParseAddr(to), []Port{{Protocol: TCP, Host: 1, Container: 1}})
	}
	c.DelTable(b.t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("the kernel refuses a table of nftables: %w", err)
	}
	return nil
}

// EnsureMasquerade makes the chain of m, and removes those of other subnets, if the chain or one of
// its rules is missing. After somebody has flushed the ruleset the next call restores it.
func (t Table) EnsureMasquerade(ctx context.Context, m Masquerade) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	if present, err := t.masquerades(c, m); present || err != nil {
		return err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	b := &batch{c: c, t: c.AddTable(t.table())}
	for _, ch := range chains {
		if ch.Table.Name == string(t) && strings.HasPrefix(ch.Name, masqueradePrefix) && ch.Name != m.chain() {
			c.DelChain(&nftables.Chain{Table: b.t, Name: ch.Name})
		}
	}
	b.masquerade(m)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("masquerade %s: %w", join(m.Subnets), err)
	}
	return nil
}

// Masquerades reports whether the chain of m has its rules.
func (t Table) Masquerades(ctx context.Context, m Masquerade) (bool, error) {
	c, err := connect(ctx)
	if err != nil {
		return false, err
	}
	return t.masquerades(c, m)
}

func (t Table) masquerades(c *nftables.Conn, m Masquerade) (bool, error) {
	rules, err := rulesOf(c, t.table(), m.chain())
	return len(rules) >= len(m.Subnets), err
}

// rulesOf lists the rules of a chain; none if there is no such chain.
func rulesOf(c *nftables.Conn, t *nftables.Table, chain string) ([]*nftables.Rule, error) {
	rules, err := c.GetRules(t, &nftables.Chain{Table: t, Name: chain})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return rules, nil
}

// Remove deletes the table, if there is one.
func (t Table) Remove(ctx context.Context) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	c.AddTable(t.table()) // so that the next command finds one
	c.DelTable(t.table())
	return c.Flush()
}
