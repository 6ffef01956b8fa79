package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/keyed"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/tree"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

// Config is what a Manager needs from the root of the program.
type Config struct {
	Root     string // survives a reboot
	State    string // does not need to
	Instance string // marks what this daemon makes on the host
	Images   *imageservice.Images
	Network  *cni.Networks
	Shim     runtimeshim.Config // State, Executable, LogLevel; the Manager adds OnExit
	Handlers map[string]Handler // those to begin with, see SetHandlers
	Default  string             // handler of a pod that names none
	Pause    string             // image of the pause container; empty is the built-in program
	Step     func(name string)  // nil: nothing

	CDISpecDirs   []string // folders of the files that describe CDI devices; a later one counts more
	SELinux       bool     // pods and what they may touch are labelled, where the kernel labels at all
	SystemdCgroup bool     // systemd makes the cgroups of pods that are made from now on; otherwise the OCI runtime does
}

// Manager holds every pod and container of this daemon.
type Manager struct {
	conf     Config
	host     spec.Host
	profile  defaultProfile
	handlers atomic.Pointer[handlers] // replaced whole
	asking   atomic.Bool              // see AskAgain
	notes    notes
	store    *store.Store
	images   *imageservice.Images
	network  *cni.Networks
	shim     *runtimeshim.Client
	step     func(string)

	flights keyed.Flights
	turns   keyed.Turns
	exits   exits
	events  events
	layers  layers
	trash   *tree.Trash // of what containers wrote
	rates   rates
	collect chan struct{} // asks the collector to look again
	open    chan struct{} // closed when recovery has made the records true
	stopped context.CancelFunc

	background context.Context // ends with Close; for what nobody waits for

	mu         sync.RWMutex // guards what follows; never held across I/O
	pods       map[string]*pod
	containers map[string]*container
	names      map[string]string // podKey or containerKey to id
	stops      map[string]*stop  // running StopContainer, by container id
	unread     map[string]error  // pods whose record cannot be read now, see unread.go
}

// pod is what is kept in memory beside the record: the request, which never changes.
type pod struct {
	id     string
	config *runtimeapi.PodSandboxConfig
	told   Told
	lacks  error         // why config cannot be read now, and is empty
	paused chan struct{} // closed when the pause process is known to have ended
	once   *sync.Once
	latest int64 // what now has returned last for the pod; guarded by Manager.mu
}

type container struct {
	id          string
	podID       string
	imageID     string   // held as long as the container is known
	mountImages []string // held as well: see store.Container
	config      *runtimeapi.ContainerConfig
	told        Told
	lacks       error         // why config cannot be read now, and is empty
	exited      chan struct{} // closed after the exit is recorded
	settling    atomic.Bool   // see settleLater
	once        *sync.Once
}

func newPod(id string, c *runtimeapi.PodSandboxConfig) *pod {
	return &pod{id: id, config: c, paused: make(chan struct{}), once: &sync.Once{}}
}

func newContainer(podID string, r store.Container, c *runtimeapi.ContainerConfig) *container {
	return &container{id: r.ID, podID: podID, imageID: r.ImageID, mountImages: r.MountImages, config: c, exited: make(chan struct{}), once: &sync.Once{}}
}

func (c *container) markExited() { c.once.Do(func() { close(c.exited) }) }
func (p *pod) markPaused()       { p.once.Do(func() { close(p.paused) }) }

// trashName is the folder, beside those of the containers, in which they wait to be deleted. No container has such an id.
const trashName = ".trash"

// Open loads the records, finds the shim and logger or starts them, and brings what was interrupted to an end in the background. When it
// returns, lists and statuses tell the truth. ctx ends the background work.
func Open(ctx context.Context, c Config) (*Manager, error) {
	if c.Step == nil {
		c.Step = func(string) {}
	}
	m := &Manager{
		conf: c, images: c.Images, network: c.Network, step: c.Step, collect: make(chan struct{}, 1), open: make(chan struct{}),
		pods: map[string]*pod{}, containers: map[string]*container{}, names: map[string]string{}, stops: map[string]*stop{}, unread: map[string]error{},
	}
	for _, dir := range []string{m.statePath("pods"), m.statePath("rootfs"), m.statePath("volumes"), m.statePath("locks"), m.rootPath("containers")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open pods: %w", err)
		}
	}
	if err := os.MkdirAll(m.statePath("userns"), 0o711); err != nil {
		return nil, fmt.Errorf("open pods: %w", err)
	}
	host, err := ReadHost()
	if err != nil {
		return nil, err
	}
	host.SystemdCgroup, host.CgroupParent = c.SystemdCgroup, CgroupParent(c.Instance, c.SystemdCgroup)
	host.SELinux, host.SELinuxOff = c.SELinux && selinux.Enabled(), !c.SELinux && selinux.Enabled()
	m.host = host
	m.loadProfile(ctx)
	m.SetHandlers(ctx, c.Handlers, c.Default)
	if err := m.load(ctx); err != nil {
		return nil, err
	}
	m.reserveLabels()
	ctx, m.stopped = context.WithCancel(ctx)
	m.background = ctx
	if m.trash, err = tree.OpenTrash(ctx, m.rootPath("containers", trashName)); err != nil {
		m.stopped()
		return nil, fmt.Errorf("open pods: %w", err)
	}
	shim := c.Shim
	shim.OnExit = func(t runtimeshim.Task) { m.onExit(ctx, t) }
	if m.shim, err = connect(ctx, shim); err != nil {
		m.stopped()
		return nil, err
	}
	if err := m.recover(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	close(m.open)
	go m.collector(ctx)
	return m, nil
}

// connect waits for a shim that is alive and silent: it is the parent of everything that runs, and there can be no second one.
func connect(ctx context.Context, c runtimeshim.Config) (*runtimeshim.Client, error) {
	for {
		client, err := runtimeshim.Connect(ctx, c)
		if !errors.Is(err, errdefs.ErrUnavailable) || ctx.Err() != nil {
			return client, err
		}
		log.G(ctx).WithError(err).Warn("waiting for the shim; nothing can be answered without it")
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
	return errors.Join(m.shim.Close(), m.exits.wait())
}

// Ready says why no container can be started, or nil (CRI condition RuntimeReady).
func (m *Manager) Ready(ctx context.Context) error {
	h, err := m.handler("")
	if err != nil {
		return err
	}
	if _, err := os.Stat(h.Path); err != nil {
		return fmt.Errorf("runtime %s: %w", m.handlers.Load().byDefault, err)
	}
	ctx, cancel := context.WithTimeout(ctx, shimPatience)
	defer cancel()
	if _, err := m.shim.Tasks(ctx); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	return nil
}

// shimPatience is how long the shim may take to answer before the node counts as not ready.
const shimPatience = 2 * time.Second

// Host returns what was found out about this machine at start.
func (m *Manager) Host() spec.Host { return m.host }

// now returns the date of something that is made, or happens, in a pod of that name: the time in nanoseconds, and later
// than all before in pods of the same name, of which the kubelet takes the one with the latest date for the one that
// counts. Where the clock was far ahead, those stay there, so this does not say when something has ended.
func (m *Manager) now(c *runtimeapi.PodSandboxConfig) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now().UnixNano()
	var same []*pod
	for _, p := range m.pods {
		if sameName(p.config.GetMetadata(), c.GetMetadata()) {
			same = append(same, p)
			now = max(now, p.latest+1)
		}
	}
	for _, p := range same {
		p.latest = now
	}
	return now
}

// sameName tells whether two pods are one for the kubelet, be it in two attempts.
func sameName(a, b *runtimeapi.PodSandboxMetadata) bool {
	return a.GetUid() == b.GetUid() && a.GetName() == b.GetName() && a.GetNamespace() == b.GetNamespace()
}

func (m *Manager) rootPath(parts ...string) string {
	return filepath.Join(append([]string{m.conf.Root}, parts...)...)
}

func (m *Manager) statePath(parts ...string) string {
	return filepath.Join(append([]string{m.conf.State}, parts...)...)
}

// podKey identifies a pod for its owner: a second request with the same key is the same request.
func podKey(c *runtimeapi.PodSandboxConfig) string {
	d := c.GetMetadata()
	return fmt.Sprintf("pod %s/%s %s attempt %d", d.GetNamespace(), d.GetName(), d.GetUid(), d.GetAttempt())
}

func containerKey(podID string, c *runtimeapi.ContainerConfig) string {
	d := c.GetMetadata()
	return fmt.Sprintf("container %s of pod %s attempt %d", d.GetName(), podID, d.GetAttempt())
}

// clean runs an act that must finish whether or not anybody still waits for it.
func clean(ctx context.Context, limit time.Duration, act func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return act(ctx)
}

// NetworkReady says why no pod can be connected now, or nil (CRI condition NetworkReady).
func (m *Manager) NetworkReady() error { return m.network.Ready() }

// Network returns what is known of the network that pods are connected to now.
func (m *Manager) Network(ctx context.Context) cni.Status { return m.network.Status(ctx) }

// SetPodCIDR takes the range of this node's pods (CRI UpdateRuntimeConfig). ErrInvalidArgument when it is none.
func (m *Manager) SetPodCIDR(cidr string) error { return m.network.SetPodCIDR(cidr) }
