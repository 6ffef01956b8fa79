package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTime is how long one request may take.
const callTime = time.Minute

// logName is the log of a pod's container, in the pod's folder.
const logName = "main.log"

// pod is a pod with one container, which does nothing unless it is told to.
type pod struct {
	runtime   *runtime
	config    *cri.PodSandboxConfig
	image     string
	command   []string
	id        string
	container string
}

// newPod asks for what a kubelet asks for: a cgroup, the default seccomp profile, a limit of memory.
func (r *runtime) newPod() *pod {
	r.made++
	name := fmt.Sprintf("pod%d", r.made)
	return &pod{runtime: r, image: r.image, command: []string{"sleep", "1000000"}, config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "compare", Uid: name},
		Hostname: name, LogDirectory: filepath.Join(r.logs, name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: filepath.Join(r.cgroup, name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}, Seccomp: defaultSeccomp(),
			},
		},
	}}
}

func defaultSeccomp() *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
}

// up starts the pod and its container.
func (p *pod) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		return err
	}
	ran, err := p.runtime.pods.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return err
	}
	p.id = ran.PodSandboxId
	made, err := p.runtime.pods.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: p.image},
			Command: p.command, LogPath: logName,
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}, Seccomp: defaultSeccomp(),
				},
			},
		},
	})
	if err != nil {
		return err
	}
	p.container = made.ContainerId
	_, err = p.runtime.pods.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
	return err
}

// down stops and removes the pod, in the kubelet's order. The container is killed at once: sleep, as
// the first process of its namespace, ignores SIGTERM.
func (p *pod) down(ctx context.Context) error {
	if err := p.stop(ctx); err != nil {
		return err
	}
	return p.remove(ctx)
}

func (p *pod) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := p.runtime.pods.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	_, err := p.runtime.pods.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	return err
}

func (p *pod) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := p.runtime.pods.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	_, err := p.runtime.pods.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// exec runs true in the container.
func (p *pod) exec(ctx context.Context) error { return p.run(ctx, "true") }

// run runs a command in the container.
func (p *pod) run(ctx context.Context, command ...string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := p.runtime.pods.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: command, Timeout: 10})
	if err == nil && got.ExitCode != 0 {
		err = fmt.Errorf("%s has exit code %d: %s", command[0], got.ExitCode, got.Stderr)
	}
	return err
}

// ended returns when the container has ended well.
func (p *pod) ended(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for {
		got, err := p.runtime.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return err
		}
		if s := got.Status; s.State == cri.ContainerState_CONTAINER_EXITED {
			if s.ExitCode != 0 {
				return fmt.Errorf("the container has exit code %d: %s", s.ExitCode, s.Message)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeCgroup removes the pod's cgroup, as a kubelet does.
func (p *pod) removeCgroup() error {
	var errs []error
	for _, folder := range cgroupFolders(p.config.Linux.CgroupParent) {
		if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// together is how many requests are under way at once, where there are several.
const together = 10

// each calls f for every pod, some at a time.
func each(ctx context.Context, pods []*pod, f func(*pod, context.Context) error) error {
	errs, turns := make([]error, len(pods)), make(chan struct{}, together)
	var group sync.WaitGroup
	for i, p := range pods {
		turns <- struct{}{}
		group.Go(func() {
			errs[i] = f(p, ctx)
			<-turns
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
