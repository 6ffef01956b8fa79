package cni

import (
	"context"
	"time"
)

// Status describes, for people, the network that pods are connected to now.
type Status struct {
	Network string   `json:"network,omitempty"`
	File    string   `json:"file,omitempty"` // empty: the default network
	Plugins []string `json:"plugins,omitempty"`
	Error   string   `json:"error,omitempty"` // why no pod can be connected now
	// PluginStatus is the plugins' last answer to STATUS; empty if the configuration is older than
	// CNI 1.1.0.
	PluginStatus string `json:"pluginStatus,omitempty"`
	Debts        int    `json:"debts"` // pods that are connected or have a pending DEL
	// LastFailure stays until the next one.
	LastFailure *Failure `json:"lastFailure,omitempty"`
}

// Failure is an ADD, DEL or GC that failed.
type Failure struct {
	At    time.Time `json:"at"`
	Call  string    `json:"call"`
	Pod   string    `json:"pod"`
	Error string    `json:"error"`
}

// Status returns the status of the current network, from the same checks as Ready.
func (n *Networks) Status(ctx context.Context) Status {
	s := Status{Debts: len(n.Debts()), LastFailure: n.failure.Load()}
	w, err := n.current(ctx)
	if err == nil {
		s.Network, s.File, s.Plugins = w.name, w.file, w.needs
		err = n.usable(w)
		s.PluginStatus = n.asker.last(w)
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// failed stores an error for Status, and returns it.
func (n *Networks) failed(call, pod string, err error) error {
	if err != nil {
		n.failure.Store(&Failure{At: time.Now(), Call: call, Pod: pod, Error: err.Error()})
	}
	return err
}
