package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/tree"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/network"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/pins"
	"github.com/cribox/cribox/sandbox/podfiles"
	"github.com/cribox/cribox/sandbox/rootfs"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/stats"
	"github.com/cribox/cribox/sandbox/streams"
	"github.com/cribox/cribox/sandbox/table"
)

// Config is what a Manager needs from the root of the program.
type Config struct {
	Root     string // survives a reboot
	State    string // does not need to
	Instance string // marks what this daemon makes on the host
	Images   rootfs.Images
	Layers   string // the folder that unpacked layers lie in
	Network  network.Network
	Handlers map[string]Handler // those to begin with, see SetHandlers
	Default  string             // handler of a pod that names none
	Pause    string             // image of the pause container; empty is the built-in program
	Step     step.Hook          // nil: nothing

	// Connect finds the runtime, or starts it. It calls onExit once for each task that ended, also
	// for those that ended while nobody watched. ErrUnavailable: it may be found another time.
	Connect func(ctx context.Context, onExit func(runtimeshim.Task)) (Runtime, error)
	// Features asks an OCI runtime, by its path, what it can do. ErrNotImplemented: it does not
	// say.
	Features func(ctx context.Context, path string) (runtimeshim.Features, error)

	CDISpecDirs []string        // folders of the files that describe CDI devices; a later one counts more
	Activity    *activity.Table // what pods and containers are doing; nil: not remembered

	SELinux       bool // pods and what they may touch are labelled, where the kernel labels at all
	SystemdCgroup bool // systemd makes the cgroups of pods that are made from now on; otherwise the OCI runtime does
}

// Manager holds every pod and container of this daemon. It is the parts that it consists of, and
// has their exported methods.
type Manager struct {
	lists
	machine
	*pods
	*containers
	*updates
	*streams.Sessions
	*stats.Figures
	network  *network.Connector
	endings  *endings
	recovery *recovery
	exits    keyed.Queues
	shim     Runtime
	table    *table.Table
	node     *node.Node

	open    chan struct{} // closed when recovery has made the records true
	stopped context.CancelFunc
}

// lists are the methods of the table that change nothing.
type lists interface {
	Pod(id string) (Pod, error)
	Pods() []Pod
	Container(id string) (Container, error)
	Containers() []Container
	ListPods(encode func([]byte, Pod) []byte) *table.List[Pod]
	ListContainers(encode func([]byte, Container) []byte) *table.List[Container]
	ContainersOf(p Pod) []Container
	Subscribe(ctx context.Context) (context.Context, <-chan *Event)
}

// machine are the methods of the node that say what can be run here, and by what.
type machine interface {
	Host() spec.Host
	HostOf(handler string) spec.Host
	SetHandlers(ctx context.Context, byName map[string]Handler, byDefault string)
	Handlers() (names []string, byDefault string)
	CheckHandler(name string) error
	AskAgain()
	Flaws() error
	Features() map[string]any
	Notes() map[string]int
}

// trashName is the folder, beside those of the containers, in which they wait to be deleted. No
// container has such an id.
const trashName = ".trash"

// Open loads the records, finds the shim and logger or starts them, and brings what was interrupted
// to an end in the background. When it returns, lists and statuses tell the truth. ctx ends the
// background work.
func Open(ctx context.Context, c Config) (*Manager, error) {
	l := layout.Layout{Root: c.Root, State: c.State, Instance: c.Instance}
	if err := l.Make(); err != nil {
		return nil, fmt.Errorf("open pods: %w", err)
	}
	all := table.New(l)
	m := &Manager{open: make(chan struct{}), lists: all, table: all}
	background, stopped := context.WithCancel(ctx)
	m.stopped = stopped
	n, err := node.New(background, node.Config{
		State: c.State, Instance: c.Instance, CheckIDMap: c.Images.CheckIDMap, Features: c.Features,
		CDISpecDirs: c.CDISpecDirs,
		SELinux:     c.SELinux, SystemdCgroup: c.SystemdCgroup,
	})
	if err != nil {
		stopped()
		return nil, err
	}
	m.node, m.machine = n, n
	if n.Host().SELinux {
		labelLayers(background, c.Layers)
	}
	m.SetHandlers(ctx, c.Handlers, c.Default)
	if err := m.table.Load(ctx); err != nil {
		stopped()
		return nil, err
	}
	trash, err := tree.OpenTrash(background, l.RootPath("containers", trashName))
	if err != nil {
		stopped()
		return nil, fmt.Errorf("open pods: %w", err)
	}
	if m.shim, err = connect(background, c.Connect, func(t runtimeshim.Task) { m.onExit(background, t) }); err != nil {
		stopped()
		return nil, err
	}
	m.assemble(c, background, trash)
	if err := m.recovery.recover(background); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	close(m.open)
	go m.network.Collect(background)
	return m, nil
}

// assemble makes the parts that need the shim. Each knows those before it alone.
func (m *Manager) assemble(c Config, background context.Context, trash *tree.Trash) {
	l, states := m.table.Layout, m.table.States
	labels := &labels{on: m.node.Host().SELinux, states: states}
	labels.reserve()
	mounts := &rootfs.Mounts{Layout: l, Images: c.Images, Trash: trash, Pause: c.Pause, Step: c.Step}
	files := podfiles.Files{Layout: l}
	m.network = network.New(m.table, c.Network, m.shim.Peers, c.Step)
	pinned := pins.New(l, m.table, m.shim.Namespaces)
	turns := &keyed.Turns{}
	m.endings = &endings{states: states, mounts: mounts, shim: m.shim, turns: turns, step: c.Step}
	m.containers = &containers{
		endings: m.endings, turns: turns,
		layout: l, states: states, table: m.table, node: m.node, mounts: mounts, files: files, labels: labels, pins: pinned,
		shim: m.shim, step: c.Step, background: background, activity: c.Activity, stops: map[string]*stop{},
	}
	m.pods = &pods{
		layout: l, states: states, table: m.table, node: m.node, mounts: mounts, files: files, labels: labels, pins: pinned,
		network: m.network, containers: m.containers, shim: m.shim, step: c.Step, background: background,
		activity: c.Activity,
	}
	m.updates = &updates{
		layout: l, states: states, table: m.table, node: m.node, files: files, containers: m.containers,
		shim: m.shim, step: c.Step, background: background,
	}
	m.Sessions = streams.New(l, m.table, m.shim, m.node.ExecNatively, c.Network.Dial)
	m.Figures = stats.New(l, m.table, m.node.Host())
	m.recovery = &recovery{
		layout: l, states: states, table: m.table, mounts: mounts, files: files, network: m.network, containers: m.containers,
		endings: m.endings, pods: m.pods,
		updates: m.updates, shim: m.shim, background: background,
	}
}

// connect waits for a shim that is alive and silent: it is the parent of everything that runs, and
// there can be no second one.
func connect(
	ctx context.Context, find func(context.Context, func(runtimeshim.Task)) (Runtime, error),
	onExit func(runtimeshim.Task),
) (Runtime, error) {
	for {
		found, err := find(ctx, onExit)
		if !errors.Is(err, errdefs.ErrUnavailable) || ctx.Err() != nil {
			return found, err
		}
		log.G(ctx).WithError(err).Warn("waiting for the shim; no request can be answered without it")
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
		}
	}
}

// Close ends the background work. Shim, logger and everything that runs stay.
func (m *Manager) Close() error {
	m.stopped()
	return errors.Join(m.shim.Close(), m.waitForExits())
}

// shimPatience is how long the shim may take to answer before the node counts as not ready.
const shimPatience = 2 * time.Second

// Ready says why no container can be started, or nil (CRI condition RuntimeReady).
func (m *Manager) Ready(ctx context.Context) error {
	h, err := m.node.Handler("")
	if err != nil {
		return err
	}
	if _, err := os.Stat(h.Path); err != nil {
		_, byDefault := m.Handlers()
		return fmt.Errorf("runtime %s: %w", byDefault, err)
	}
	ctx, cancel := context.WithTimeout(ctx, shimPatience)
	defer cancel()
	if err := m.shim.Ping(ctx); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	return nil
}

// NetworkReady says why no pod can be connected now, or nil (CRI condition NetworkReady).
func (m *Manager) NetworkReady() error { return m.network.Ready() }

// Owed returns the pods without processes whose network is not released yet.
func (m *Manager) Owed() []string { return m.network.Owed() }

// Helpers returns the processes of the runtime that answer now.
func (m *Manager) Helpers(ctx context.Context) []runtimeshim.Helper { return m.shim.Helpers(ctx) }

// Network returns what is known of the network that pods are connected to now.
func (m *Manager) Network(ctx context.Context) cni.Status { return m.network.Status(ctx) }

// SetPodCIDR takes the range of this node's pods (CRI UpdateRuntimeConfig). ErrInvalidArgument when
// it is none.
func (m *Manager) SetPodCIDR(cidr string) error { return m.network.SetPodCIDR(cidr) }

// Spec returns the OCI spec of a container, as long as its pod is not stopped.
func (m *Manager) Spec(c table.Container) ([]byte, error) {
	known, err := m.table.FindContainer(c.ID)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(m.table.Layout.SpecPath(known.PodID, known.ID))
}

// PodSpec returns the OCI spec of a pod, which names its namespaces, as long as the pod is not
// stopped.
func (m *Manager) PodSpec(p table.Pod) ([]byte, error) {
	return os.ReadFile(m.table.Layout.PodSpecPath(p.ID))
}

// clean runs an act that must finish whether or not anybody still waits for it.
func clean(ctx context.Context, limit time.Duration, act func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return act(ctx)
}

// warn logs an error that does not change what happens next.
func warn(ctx context.Context, err error) {
	if err != nil {
		log.G(ctx).WithError(err).Warn("continuing after an error")
	}
}

const retryAtMost = 5 * time.Minute // between two tries of retryUntilDone

// retryUntilDone repeats an act until it succeeds or ctx ends, each time with more patience.
func retryUntilDone(ctx context.Context, what string, act func(context.Context) error) {
	debt := activity.Owe(ctx, what)
	defer debt.Paid()
	for wait := time.Second; ; wait = min(2*wait, retryAtMost) {
		debt.Again()
		err := guard.Call(ctx, what, func() error { return clean(ctx, teardownLimit, act) })
		if err == nil || ctx.Err() != nil {
			return
		}
		log.G(ctx).WithField("step", what).WithError(err).Warn("interrupted operations are not finished yet")
		debt.Failed(err, time.Now().Add(wait))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
