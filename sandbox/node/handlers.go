package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/spec/check"
)

// Handler is a way to run containers, by the name that a pod asks for
// (RunPodSandboxRequest.runtime_handler).
type Handler struct {
	Path string // of an OCI command line runtime

	Rlimits       []specs.POSIXRlimit // of every process; see spec.ClampRlimits
	PidsLimit     int64               // most processes and threads of a container; 0: no limit of its own
	ShmSize       int64               // bytes that the /dev/shm of a pod holds
	LogLimit      int64               // bytes that a container's log takes until it is rotated; 0: any number
	MissingPaths  MissingPaths        // what happens to mounts of such host paths
	Ports, Ping   bool                // low ports and ping are for every user in a pod with a network of its own
	NativePause   bool                // pods are started without the runtime where that makes no difference
	NativeExec    bool                // and so are commands executed in containers
	NoHostDevices bool                // a privileged container has the devices that it asks for, and not all of the host's
}

// Node is what this machine and its OCI runtimes can do, and what a pod or container is refused or
// given for that.
type Node struct {
	conf       Config
	host       spec.Host
	background context.Context // for what nobody waits for

	profile  defaultProfile
	handlers atomic.Pointer[handlers] // replaced whole
	asking   atomic.Bool              // see AskAgain
	notes    notes
	flights  keyed.Flights
}

// Config is what a Node needs to know.
type Config struct {
	State    string // the state folder
	Instance string // marks what this daemon makes on the host
	// CheckIDMap tries to mount images with the ids of a user namespace.
	CheckIDMap func(userNS *os.File) error
	// Features asks an OCI runtime, by its path, what it can do. ErrNotImplemented: it does not
	// say.
	Features    func(ctx context.Context, path string) (runtimeshim.Features, error)
	CDISpecDirs []string // folders of the files that describe CDI devices; a later one counts more

	SELinux       bool // pods and what they may touch are labelled, where the kernel labels at all
	SystemdCgroup bool // systemd makes the cgroups of pods that are made from now on; otherwise the OCI runtime does
}

// New looks at this machine, and begins to load the default AppArmor profile. ctx ends what
// goes on in the background.
func New(ctx context.Context, c Config) (*Node, error) {
	h, err := ReadHost()
	if err != nil {
		return nil, err
	}
	h.SystemdCgroup, h.CgroupParent = c.SystemdCgroup, CgroupParent(c.Instance, c.SystemdCgroup)
	h.SELinux, h.SELinuxOff = c.SELinux && selinux.Enabled(), !c.SELinux && selinux.Enabled()
	n := &Node{conf: c, host: h, background: ctx}
	n.loadProfile(ctx)
	return n, nil
}

// Host returns what was found out about this machine at start.
func (n *Node) Host() spec.Host { return n.host }

// HostNow is Host with what can change while the daemon runs.
func (n *Node) HostNow() spec.Host { return withHardware(n.host) }

// handlers is what pods and containers can be made with at one moment. It never changes.
type handlers struct {
	byName    map[string]Handler
	byDefault string
	can       *abilities
}

// SetHandlers replaces all handlers, for pods and containers that are made from now on. byDefault,
// the handler of a pod that names none, is one of them. A pod whose handler is gone runs on, and
// takes no more containers. Commands are executed by what has started their container.
func (n *Node) SetHandlers(ctx context.Context, byName map[string]Handler, byDefault string) {
	next := &handlers{byName: map[string]Handler{}, byDefault: byDefault}
	for name, h := range byName {
		ctx := log.WithLogger(ctx, log.G(ctx).WithField("handler", name))
		var clamped []check.Note
		h.Rlimits, clamped = spec.ClampRlimits(h.Rlimits, n.host.RlimitHard)
		n.Note(ctx, clamped)
		next.byName[name] = h
	}
	first, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	next.can = n.ask(first, next.byName, nil)
	n.handlers.Store(next)
	n.askAtOnce()
}

// Handlers returns the names of all handlers, sorted, and which of them is the default.
func (n *Node) Handlers() (names []string, byDefault string) {
	now := n.handlers.Load()
	return slices.Sorted(maps.Keys(now.byName)), now.byDefault
}

// HostOf is Host for the pods of one handler, "" is the default one.
func (n *Node) HostOf(handler string) spec.Host {
	return n.hostBy(n.handlers.Load(), handler)
}

func (n *Node) hostBy(now *handlers, handler string) spec.Host {
	h := withHardware(n.host)
	if handler == "" {
		handler = now.byDefault
	}
	with := now.byName[handler]
	h.Rlimits, h.PidsLimit, h.NoHostDevices = with.Rlimits, with.PidsLimit, with.NoHostDevices
	h.UnprivilegedPorts, h.UnprivilegedPing = with.Ports, with.Ping
	h.NoUserNamespaces, h.NoMappedTmpfs = now.can.noUserNamespaces(handler, with), text(now.can.noTmpfs)
	h.RecursiveReadOnly = h.RecursiveReadOnly && now.can.byName[handler].RecursiveReadOnly
	if h.AppArmor {
		h.AppArmorProfile, h.NoAppArmorProfile = n.defaultAppArmor()
	}
	return h
}

// PauseNatively reports whether pods of a handler are started without its runtime, if it is a runc
// of which that is known to make no difference.
func (n *Node) PauseNatively(handler string) bool {
	now := n.handlers.Load()
	handler = cmp.Or(handler, now.byDefault)
	return now.byName[handler].NativePause && now.can.byName[handler].Native
}

// ExecNatively is PauseNatively for commands in containers.
func (n *Node) ExecNatively(handler string) bool {
	now := n.handlers.Load()
	handler = cmp.Or(handler, now.byDefault)
	return now.byName[handler].NativeExec && now.can.byName[handler].Native
}

// CheckHandler returns ErrInvalidArgument for a handler that is not configured; "" is the default
// one.
func (n *Node) CheckHandler(name string) error {
	_, err := n.Handler(name)
	return err
}

func (n *Node) Handler(name string) (Handler, error) {
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
