package activity

import (
	"context"
	"slices"
	"time"
)

// Debt is work that has failed and is tried again until it succeeds.
type Debt struct {
	table *Table
	owed  Owed
}

// Owed is what is known of a Debt.
type Owed struct {
	Subject
	What  string
	Since time.Time
	Tries int
	Err   string    // of the last try
	Next  time.Time // when it is tried again; zero while it is being tried
}

// Owe says that the work of ctx has to be done until it succeeds.
func Owe(ctx context.Context, what string) *Debt {
	s := scopeOf(ctx)
	if s.table == nil {
		return nil
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	d := &Debt{table: s.table, owed: Owed{Subject: Subject{Kind: s.key.kind, ID: s.key.id}, What: what, Since: time.Now()}}
	if one := s.table.stories[s.key]; one != nil {
		d.owed.Name = one.name
	}
	s.table.debts[d] = true
	return d
}

// Failed says that a try has failed, and when the next one is.
func (d *Debt) Failed(err error, next time.Time) {
	if d == nil {
		return
	}
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	d.owed.Tries++
	d.owed.Err, d.owed.Next = clip(err.Error()), next
}

// Again says that the next try has begun.
func (d *Debt) Again() {
	if d == nil {
		return
	}
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	d.owed.Next = time.Time{}
}

// Paid says that the work is done, or that nobody will try again.
func (d *Debt) Paid() {
	if d == nil {
		return
	}
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	delete(d.table.debts, d)
}

// Debts returns all debts that failed at least once, the oldest first.
func (t *Table) Debts() []Owed {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Owed
	for d := range t.debts {
		if d.owed.Tries > 0 {
			all = append(all, d.owed)
		}
	}
	slices.SortFunc(all, func(a, b Owed) int { return a.Since.Compare(b.Since) })
	return all
}
