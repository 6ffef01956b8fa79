package harness

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// Names counts the pods and containers of all tests, so that no name is used twice.
var Names atomic.Int64

// Pod is a pod that a test has asked for.
type Pod struct {
	*Daemon
	ID     string
	Config *cri.PodSandboxConfig
}

// PodOption changes the configuration of a pod before it is sent.
type PodOption func(*cri.PodSandboxConfig)

// PodConfig is what a kubelet would send for a pod in its own namespaces.
func (d *Daemon) PodConfig(options ...PodOption) *cri.PodSandboxConfig {
	n := Names.Add(1)
	name := fmt.Sprintf("pod-%d", n)
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "tests", Uid: fmt.Sprintf("uid-%s-%d", d.Instance(), n)},
		Hostname:     name,
		LogDirectory: filepath.Join(d.Logs(), name),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"note": "of " + name},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	for _, o := range options {
		o(c)
	}
	if filepath.IsAbs(c.LogDirectory) {
		d.Must(os.MkdirAll(c.LogDirectory, 0o755)) // as the kubelet does
	}
	return c
}

// OnHostNetwork puts a pod into the network namespace of the host.
func OnHostNetwork(c *cri.PodSandboxConfig) {
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
}

// RunPod runs a pod, or ends the test.
func (d *Daemon) RunPod(options ...PodOption) *Pod {
	d.Helper()
	p, err := d.TryPod(d.PodConfig(options...))
	d.Must(err)
	return p
}

// TryPod asks for a pod.
func (d *Daemon) TryPod(config *cri.PodSandboxConfig) (*Pod, error) {
	r, err := d.Runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	return &Pod{Daemon: d, ID: r.PodSandboxId, Config: config}, nil
}

// Status is the status of the pod.
func (p *Pod) Status() *cri.PodSandboxStatus {
	p.Helper()
	r, err := p.Runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	p.Must(err)
	return r.Status
}

// IP is the first address of the pod; it ends the test when there is none.
func (p *Pod) IP() string {
	p.Helper()
	ip := p.Status().GetNetwork().GetIp()
	if ip == "" {
		p.Fatalf("pod %s has no address", p.ID)
	}
	return ip
}

// Stop stops the pod, or ends the test.
func (p *Pod) Stop() {
	p.Helper()
	_, err := p.Runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	p.Must(err)
}

// Remove removes the pod, or ends the test.
func (p *Pod) Remove() {
	p.Helper()
	_, err := p.Runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
	p.Must(err)
}

// Container is a container that a test has asked for.
type Container struct {
	*Pod
	ID     string
	Config *cri.ContainerConfig
}

// ContainerOption changes the configuration of a container before it is sent.
type ContainerOption func(*cri.ContainerConfig)

// ContainerConfig is what a kubelet would send for an unprivileged container of busybox.
func (p *Pod) ContainerConfig(options ...ContainerOption) *cri.ContainerConfig {
	p.Helper()
	name := fmt.Sprintf("c%d", Names.Add(1))
	c := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: name},
		Image:       &cri.ImageSpec{Image: p.Pulled(Busybox), UserSpecifiedImage: Busybox},
		LogPath:     name + ".log",
		Labels:      map[string]string{"container": name},
		Annotations: map[string]string{"note": "of " + name},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.Linux.GetSecurityContext().GetNamespaceOptions(),
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				MaskedPaths:      MaskedPaths,
				ReadonlyPaths:    ReadonlyPaths,
			},
		},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// What a kubelet sends for every container that is not privileged.
var (
	MaskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/interrupts",
	}
	ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Running gives a container its command and arguments.
func Running(args ...string) ContainerOption {
	return func(c *cri.ContainerConfig) { c.Command, c.Args = args[:1], args[1:] }
}

// Shell runs a script in busybox.
func Shell(script string) ContainerOption { return Running("sh", "-c", script) }

// Tool runs a subcommand of the toolbox image.
func (d *Daemon) Tool(args ...string) ContainerOption {
	return func(c *cri.ContainerConfig) {
		c.Image = &cri.ImageSpec{Image: d.Pulled(Toolbox), UserSpecifiedImage: Toolbox}
		c.Command, c.Args = []string{"/toolbox"}, args
	}
}

// Idle is a container that waits to be killed.
func Idle() ContainerOption { return Running("sleep", "1d") }

// Called gives a container its name, and its log the same.
func Called(name string) ContainerOption {
	return func(c *cri.ContainerConfig) { c.Metadata.Name, c.LogPath = name, name+".log" }
}

// With is an option from any change.
func With(change func(*cri.ContainerConfig)) ContainerOption { return change }

// Create creates a container, or ends the test.
func (p *Pod) Create(options ...ContainerOption) *Container {
	p.Helper()
	c, err := p.TryCreate(p.ContainerConfig(options...))
	p.Must(err)
	return c
}

// TryCreate asks for a container.
func (p *Pod) TryCreate(config *cri.ContainerConfig) (*Container, error) {
	r, err := p.Runtime.CreateContainer(context.Background(), &cri.CreateContainerRequest{
		PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config,
	})
	if err != nil {
		return nil, err
	}
	return &Container{Pod: p, ID: r.ContainerId, Config: config}, nil
}

// Run creates and starts.
func (p *Pod) Run(options ...ContainerOption) *Container {
	p.Helper()
	c := p.Create(options...)
	c.Start()
	return c
}

// Start starts the container, or ends the test.
func (c *Container) Start() {
	c.Helper()
	c.Must(c.TryStart())
}

// TryStart asks for the start of the container.
func (c *Container) TryStart() error {
	_, err := c.Runtime.StartContainer(context.Background(), &cri.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Stop gives a grace in seconds.
func (c *Container) Stop(grace int64) {
	c.Helper()
	_, err := c.Runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
	c.Must(err)
}

// Remove removes the container, or ends the test.
func (c *Container) Remove() {
	c.Helper()
	_, err := c.Runtime.RemoveContainer(context.Background(), &cri.RemoveContainerRequest{ContainerId: c.ID})
	c.Must(err)
}

// Status is the status of the container.
func (c *Container) Status() *cri.ContainerStatus {
	c.Helper()
	r, err := c.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	c.Must(err)
	return r.Status
}

// WaitExit returns the status once the container has exited.
func (c *Container) WaitExit() *cri.ContainerStatus {
	c.Helper()
	var s *cri.ContainerStatus
	Eventually(c, "container "+c.Config.Metadata.Name+" to exit", func() error {
		s = c.Status()
		return Unless(s.State == cri.ContainerState_CONTAINER_EXITED, "it is %s", s.State)
	})
	return s
}

// PID is the first process of the container, as the host sees it: the oldest whose parent is not in
// the container, for so is an exec's.
func (c *Container) PID() int {
	c.Helper()
	inside := map[int]bool{}
	all := c.ProcessesOf(c.ID)
	for _, p := range all {
		inside[p.Pid] = true
	}
	all = slices.DeleteFunc(all, func(p ledger.Process) bool { return inside[p.Parent] })
	if len(all) == 0 {
		c.Fatalf("container %s has no process", c.ID)
	}
	return slices.MinFunc(all, func(a, b ledger.Process) int { return cmp.Compare(a.Began, b.Began) }).Pid
}

// ExecResult is what ExecSync answers.
type ExecResult struct {
	Stdout, Stderr string
	Code           int32
}

// TryExec runs a command in the container, with a timeout in seconds.
func (c *Container) TryExec(timeout int64, args ...string) (ExecResult, error) {
	r, err := c.Runtime.ExecSync(context.Background(), &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: args, Timeout: timeout})
	if err != nil {
		return ExecResult{}, err
	}
	return ExecResult{string(r.Stdout), string(r.Stderr), r.ExitCode}, nil
}

// Exec returns what a command in the container prints, or ends the test.
func (c *Container) Exec(args ...string) string {
	c.Helper()
	r, err := c.TryExec(60, args...)
	c.Must(err)
	if r.Code != 0 {
		c.Fatalf("exec %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// LogPath is the path of the container's log on the host.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// Kill ends the container's first process from the host.
func (c *Container) Kill() error {
	c.Helper()
	return syscall.Kill(c.PID(), syscall.SIGKILL)
}
