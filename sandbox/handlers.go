package sandbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/table"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/sandbox/spec"
)

// Handler is a way to run containers, by the name that a pod asks for (RunPodSandboxRequest.runtime_handler).
type Handler struct {
	Path string // of an OCI command line runtime

	Rlimits       []specs.POSIXRlimit // of every process; see spec.ClampRlimits
	PidsLimit     int64               // most processes and threads of a container; 0: no limit of its own
	ShmSize       int64               // bytes that the /dev/shm of a pod holds
	LogLimit      int64               // bytes that a container's log takes until it is rotated; 0: any number
	MissingPaths  MissingPaths        // what happens to mounts of such host paths
	Ports, Ping   bool                // low ports and ping are for every user in a pod with a network of its own
	NoHostDevices bool                // a privileged container has the devices that it asks for, and not all of the host's
}

// node is what this machine and its OCI runtimes can do, and what a pod or container is refused or
// given for that.
type node struct {
	layout     layout.Layout
	states     *table.States
	host       spec.Host
	images     Images
	features   func(ctx context.Context, path string) (runtimeshim.Features, error)
	cdiDirs    []string // Config.CDISpecDirs
	background context.Context

	profile  defaultProfile
	handlers atomic.Pointer[handlers] // replaced whole
	asking   atomic.Bool              // see AskAgain
	notes    notes
	flights  keyed.Flights
}

// Host returns what was found out about this machine at start.
func (n *node) Host() spec.Host { return n.host }

// handlers is what pods and containers can be made with at one moment. It never changes.
type handlers struct {
	byName    map[string]Handler
	byDefault string
	can       *abilities
}

// SetHandlers replaces all handlers, for pods and containers that are made from now on. byDefault, the handler of a pod that names none, is
// one of them. A pod whose handler is gone runs on, and takes no more containers. Commands are executed by what has started their container.
func (n *node) SetHandlers(ctx context.Context, byName map[string]Handler, byDefault string) {
	next := &handlers{byName: map[string]Handler{}, byDefault: byDefault}
	for name, h := range byName {
		ctx := log.WithLogger(ctx, log.G(ctx).WithField("handler", name))
		var clamped []spec.Note
		h.Rlimits, clamped = spec.ClampRlimits(h.Rlimits, n.host.RlimitHard)
		n.note(ctx, clamped)
		next.byName[name] = h
	}
	next.can = n.ask(ctx, next.byName, nil)
	n.handlers.Store(next)
}

// Handlers returns the names of all handlers, sorted, and which of them is the default.
func (n *node) Handlers() (names []string, byDefault string) {
	now := n.handlers.Load()
	return slices.Sorted(maps.Keys(now.byName)), now.byDefault
}

// HostOf is Host for the pods of one handler, "" is the default one.
func (n *node) HostOf(handler string) spec.Host {
	return n.hostBy(n.handlers.Load(), handler)
}

func (n *node) hostBy(now *handlers, handler string) spec.Host {
	h := withHardware(n.host)
	if handler == "" {
		handler = now.byDefault
	}
	with := now.byName[handler]
	h.Rlimits, h.PidsLimit, h.NoHostDevices = with.Rlimits, with.PidsLimit, with.NoHostDevices
	h.UnprivilegedPorts, h.UnprivilegedPing = with.Ports, with.Ping
	h.NoUserNamespaces = now.can.noUserNamespaces(handler, with)
	h.RecursiveReadOnly = h.RecursiveReadOnly && now.can.byName[handler].RecursiveReadOnly
	if h.AppArmor {
		h.AppArmorProfile, h.NoAppArmorProfile = n.defaultAppArmor()
	}
	return h
}

// CheckHandler returns ErrInvalidArgument for a handler that is not configured; "" is the default one.
func (n *node) CheckHandler(name string) error {
	_, err := n.handler(name)
	return err
}

func (n *node) handler(name string) (Handler, error) {
	return n.handlers.Load().find(name)
}

func (now *handlers) find(name string) (Handler, error) {
	if name == "" {
		name = now.byDefault
	}
	h, ok := now.byName[name]
	if !ok {
		return Handler{}, fmt.Errorf("runtime_handler %q is not configured: %w", name, errdefs.ErrInvalidArgument)
	}
	return h, nil
}

// handlerOf returns the handler that a pod was made with.
func (n *node) handlerOf(p *table.PodEntry) (Handler, error) {
	r, ok := n.states.Get(p.ID)
	if !ok {
		return Handler{}, fmt.Errorf("pod %s: %w", p.ID, errdefs.ErrNotFound)
	}
	return n.handler(r.Handler)
}
