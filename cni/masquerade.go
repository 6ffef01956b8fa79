package cni

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/cribox/cribox/cni/nat"
)

// masquerade is the nftables table of this instance: packets that leave the subnet get the host's
// address. There is one rule for all pods instead of one per pod, so that a pod can leave nothing
// behind.
type masquerade struct {
	table nat.Table
	keep  []netip.Prefix // packets to these keep the pod's address: pods of other nodes
	probe func(context.Context) error

	mu     sync.Mutex
	usable bool
	why    error         // why it was last found unusable
	asked  time.Time     // when that was
	turn   chan struct{} // held by the one writer of the chain
}

func newMasquerade(table string, keep []netip.Prefix) *masquerade {
	t := nat.Table(table)
	return &masquerade{table: t, keep: keep, turn: make(chan struct{}, 1),
		probe: func(ctx context.Context) error { return nat.Probe(ctx, t) }}
}

// probeAgain is how long a failed check counts: a module of the kernel may be installed later, or
// memory short for a moment.
const probeAgain = time.Minute

// ProbeNftables returns the reason why the default network of an instance needs plugins on this
// host; nil if it needs none.
func ProbeNftables(ctx context.Context, instance string) error {
	return nat.Probe(ctx, nat.Table(tableName(instance)))
}

func tableName(instance string) string { return "cribox_" + instance }

// works reports whether the kernel accepts such a table. A success counts forever.
func (m *masquerade) works(ctx context.Context) bool {
	m.mu.Lock()
	usable, lately := m.usable, time.Since(m.asked) < probeAgain
	m.mu.Unlock()
	if usable || lately {
		return usable
	}
	err := m.probe(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.usable = true
	case ctx.Err() == nil:
		m.asked, m.why = time.Now(), err
	}
	return m.usable
}

// reason returns why works was last false.
func (m *masquerade) reason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

func (m *masquerade) of(subnets []netip.Prefix) nat.Masquerade {
	return nat.Masquerade{Subnets: subnets, Keep: m.keep}
}

// ensure creates the chain if necessary. Normally it only asks the kernel; after somebody has
// flushed the ruleset the next pod restores it.
func (m *masquerade) ensure(ctx context.Context, subnets []netip.Prefix) error {
	if present, err := m.present(ctx, subnets); err == nil && present {
		return nil
	}
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return m.table.EnsureMasquerade(ctx, m.of(subnets))
}

// present reports whether the chain for subnets has its rules.
func (m *masquerade) present(ctx context.Context, subnets []netip.Prefix) (bool, error) {
	return m.table.Masquerades(ctx, m.of(subnets))
}

// remove deletes the table, if there is one.
func (m *masquerade) remove(ctx context.Context) error { return m.table.Remove(ctx) }
