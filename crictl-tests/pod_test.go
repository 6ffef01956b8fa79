package crictltests

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

var names atomic.Int64

// pod is a pod that a test has asked for.
type pod struct {
	*daemon
	id     string
	config *cri.PodSandboxConfig
}

type podOption func(*cri.PodSandboxConfig)

// podConfig is what a kubelet would send for a pod in its own namespaces.
func (d *daemon) podConfig(options ...podOption) *cri.PodSandboxConfig {
	n := names.Add(1)
	name := fmt.Sprintf("pod-%d", n)
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "tests", Uid: fmt.Sprintf("uid-%s-%d", d.instance(), n)},
		Hostname:     name,
		LogDirectory: filepath.Join(d.logs(), name),
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
		d.must(os.MkdirAll(c.LogDirectory, 0o755)) // as the kubelet does
	}
	return c
}

func onHostNetwork(c *cri.PodSandboxConfig) {
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
}

// runPod runs a pod, or ends the test.
func (d *daemon) runPod(options ...podOption) *pod {
	d.Helper()
	p, err := d.tryPod(d.podConfig(options...))
	d.must(err)
	return p
}

func (d *daemon) tryPod(config *cri.PodSandboxConfig) (*pod, error) {
	r, err := d.runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	return &pod{daemon: d, id: r.PodSandboxId, config: config}, nil
}

func (p *pod) status() *cri.PodSandboxStatus {
	p.Helper()
	r, err := p.runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	p.must(err)
	return r.Status
}

func (p *pod) ip() string {
	p.Helper()
	ip := p.status().GetNetwork().GetIp()
	if ip == "" {
		p.Fatalf("pod %s has no address", p.id)
	}
	return ip
}

func (p *pod) stop() {
	p.Helper()
	_, err := p.runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	p.must(err)
}

func (p *pod) remove() {
	p.Helper()
	_, err := p.runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	p.must(err)
}

// container is a container that a test has asked for.
type container struct {
	*pod
	id     string
	config *cri.ContainerConfig
}

type containerOption func(*cri.ContainerConfig)

// containerConfig is what a kubelet would send for an unprivileged container of busybox.
func (p *pod) containerConfig(options ...containerOption) *cri.ContainerConfig {
	p.Helper()
	name := fmt.Sprintf("c%d", names.Add(1))
	c := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: name},
		Image:       &cri.ImageSpec{Image: p.pulled(busybox), UserSpecifiedImage: busybox},
		LogPath:     name + ".log",
		Labels:      map[string]string{"container": name},
		Annotations: map[string]string{"note": "of " + name},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.GetSecurityContext().GetNamespaceOptions(),
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				MaskedPaths:      maskedPaths,
				ReadonlyPaths:    readonlyPaths,
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
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/interrupts",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func running(args ...string) containerOption {
	return func(c *cri.ContainerConfig) { c.Command, c.Args = args[:1], args[1:] }
}

// shell runs a script in busybox.
func shell(script string) containerOption { return running("sh", "-c", script) }

// tool runs a subcommand of the toolbox image.
func (d *daemon) tool(args ...string) containerOption {
	return func(c *cri.ContainerConfig) {
		c.Image = &cri.ImageSpec{Image: d.pulled(toolbox), UserSpecifiedImage: toolbox}
		c.Command, c.Args = []string{"/toolbox"}, args
	}
}

// idle is a container that waits to be killed.
func idle() containerOption { return running("sleep", "1d") }

func called(name string) containerOption {
	return func(c *cri.ContainerConfig) { c.Metadata.Name, c.LogPath = name, name+".log" }
}

func with(change func(*cri.ContainerConfig)) containerOption { return change }

// create creates a container, or ends the test.
func (p *pod) create(options ...containerOption) *container {
	p.Helper()
	c, err := p.tryCreate(p.containerConfig(options...))
	p.must(err)
	return c
}

func (p *pod) tryCreate(config *cri.ContainerConfig) (*container, error) {
	r, err := p.runtime.CreateContainer(context.Background(), &cri.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	if err != nil {
		return nil, err
	}
	return &container{pod: p, id: r.ContainerId, config: config}, nil
}

// run creates and starts.
func (p *pod) run(options ...containerOption) *container {
	p.Helper()
	c := p.create(options...)
	c.start()
	return c
}

func (c *container) start() {
	c.Helper()
	c.must(c.tryStart())
}

func (c *container) tryStart() error {
	_, err := c.runtime.StartContainer(context.Background(), &cri.StartContainerRequest{ContainerId: c.id})
	return err
}

// stop gives a grace in seconds.
func (c *container) stop(grace int64) {
	c.Helper()
	_, err := c.runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: c.id, Timeout: grace})
	c.must(err)
}

func (c *container) remove() {
	c.Helper()
	_, err := c.runtime.RemoveContainer(context.Background(), &cri.RemoveContainerRequest{ContainerId: c.id})
	c.must(err)
}

func (c *container) status() *cri.ContainerStatus {
	c.Helper()
	r, err := c.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.id})
	c.must(err)
	return r.Status
}

// waitExit returns the status once the container has exited.
func (c *container) waitExit() *cri.ContainerStatus {
	c.Helper()
	var s *cri.ContainerStatus
	eventually(c, "container "+c.config.Metadata.Name+" to exit", func() error {
		s = c.status()
		return unless(s.State == cri.ContainerState_CONTAINER_EXITED, "it is %s", s.State)
	})
	return s
}

// pid is the first process of the container, as the host sees it: the oldest whose parent is not in the container, for so is an exec's.
func (c *container) pid() int {
	c.Helper()
	inside := map[int]bool{}
	all := c.processesOf(c.id)
	for _, p := range all {
		inside[p.Pid] = true
	}
	all = slices.DeleteFunc(all, func(p ledger.Process) bool { return inside[p.Parent] })
	if len(all) == 0 {
		c.Fatalf("container %s has no process", c.id)
	}
	return slices.MinFunc(all, func(a, b ledger.Process) int { return cmp.Compare(a.Began, b.Began) }).Pid
}

type execResult struct {
	stdout, stderr string
	code           int32
}

func (c *container) tryExec(timeout int64, args ...string) (execResult, error) {
	r, err := c.runtime.ExecSync(context.Background(), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: args, Timeout: timeout})
	if err != nil {
		return execResult{}, err
	}
	return execResult{string(r.Stdout), string(r.Stderr), r.ExitCode}, nil
}

// exec returns what a command in the container prints, or ends the test.
func (c *container) exec(args ...string) string {
	c.Helper()
	r, err := c.tryExec(60, args...)
	c.must(err)
	if r.code != 0 {
		c.Fatalf("exec %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

func (c *container) logPath() string {
	return filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
}

// kill ends the container's first process from the host.
func (c *container) kill() error {
	c.Helper()
	return syscall.Kill(c.pid(), syscall.SIGKILL)
}
