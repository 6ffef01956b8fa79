package kills

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestStepKills ends the daemon at every step that a request passes, one after the other, and replays what a kubelet would do.
func TestStepKills(t *testing.T) {
	if _, err := os.Stat(harness.Binary(harness.Steps)); err != nil {
		t.Skipf("no binary that dies at a named step: %v", err)
	}
	nobodyElse := func(*harness.Daemon) {}
	shimToo := func(d *harness.Daemon) { d.KillRole("shim") }
	for _, row := range []struct {
		name string
		tell func(*harness.Daemon) *story
		also func(*harness.Daemon) // what dies with the daemon
		with []harness.Option
	}{
		{"RunPodSandbox", runsAPod(withHostPort), nobodyElse, nil},
		{"RunPodSandbox, shim too", runsAPod(), shimToo, nil},
		{"RunPodSandbox, native, shim too", runsAPod(unconfined), shimToo, nil},
		{"RunPodSandbox, by runc, shim too", runsAPod(), shimToo, []harness.Option{harness.WithTop(`pause = "runtime"`)}},
		{"CreateContainer", createsAContainer(nil), nobodyElse, nil},
		{"StartContainer", startsAContainer, nobodyElse, nil},
		{"StartContainer, shim too", startsAContainer, shimToo, nil},
		{"UpdateContainerResources", updatesAContainer, nobodyElse, nil},
		{"UpdateContainerResources, shim too", updatesAContainer, shimToo, nil},
		{"StopAndRemove", removesAPod([]harness.PodOption{withHostPort}), nobodyElse, nil},
		{"StopAndRemove, shim too", removesAPod(nil), shimToo, nil},
		{"PullImage", pullsAnImage, nobodyElse, nil},
		{"RunPodSandbox, user namespace", runsAPod(harness.InUserNamespace), nobodyElse, nil},
		{"CreateContainer, user namespace", createsAContainer([]harness.PodOption{harness.InUserNamespace}), nobodyElse, nil},
		{"StopAndRemove, user namespace", removesAPod([]harness.PodOption{harness.InUserNamespace}), nobodyElse, nil},
		{"CreateContainer, image volumes", createsAContainer(nil, withVolumes), nobodyElse, nil},
		{"StopAndRemove, image volumes", removesAPod([]harness.PodOption{harness.InUserNamespace}, withVolumes), nobodyElse, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			killAtEveryStep(t, row.tell, row.also, row.with...)
		})
	}
}

// unconfined is a pod that is started natively from the first on: its seccomp filter need not be known.
func unconfined(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
}

// story is a request to be killed in: what comes before it, the request, and what a kubelet does after the crash.
type story struct {
	d       *harness.Daemon
	prepare func()
	act     func() error
	replay  func()
}

// killAtEveryStep has the daemon die at each step of the request in turn.
func killAtEveryStep(t *testing.T, tell func(*harness.Daemon) *story, also func(*harness.Daemon), with ...harness.Option) {
	d := harness.NewDaemon(t, append(with, harness.KeepsBlobs)...)
	d.Pulled(harness.Busybox)
	killIn(t, d, tell, also, func(string) bool { return true })
}

// killIn is killAtEveryStep for a daemon that runs, and for the steps that belong to the request.
func killIn(t *testing.T, d *harness.Daemon, tell func(*harness.Daemon) *story, also func(*harness.Daemon), belongs func(step string) bool) {
	flat := d.Ledger()
	passed := slices.DeleteFunc(stepsOf(d, tell(d)), func(step string) bool { return !belongs(step) })
	if len(passed) == 0 {
		t.Fatal("no step belongs to the request")
	}
	d.WantFlat(flat)
	t.Logf("%d steps: %s", len(passed), strings.Join(passed, " "))
	for _, step := range passed {
		s := tell(d)
		s.prepare()
		d.Stop()
		if dieAt(d, step) {
			err := s.act()
			if c := status.Code(err); c != codes.Unavailable {
				t.Errorf("%s: the daemon should have died in the request, but it says: %v", step, err)
			}
		}
		d.Process.Wait(t)
		also(d)
		d.Heal()
		s.replay()
		d.WantFlat(flat)
		if t.Failed() {
			t.Fatalf("after kill at %s", step)
		}
	}
}

// dieAt starts a daemon that ends at the step; false when it passed the step while it started, and is dead already.
func dieAt(d *harness.Daemon, step string) bool {
	d.Helper()
	d.Binary = harness.Steps
	d.Env = append(d.Env, "CRIBOX_STEP_KILL="+step)
	d.Launch()
	d.Binary = harness.Cribox
	return d.Answers()
}

// stepsOf learns which steps the request passes, by having them written down.
func stepsOf(d *harness.Daemon, s *story) []string {
	d.Helper()
	s.prepare()
	d.Stop()
	file := filepath.Join(d.Dir, "steps")
	d.Must(os.WriteFile(file, nil, 0o600))
	d.Binary, d.Env = harness.Steps, append(d.Env, "CRIBOX_STEP_LOG="+file)
	d.Start()
	d.Must(os.Truncate(file, 0))
	d.Must(s.act())
	data, err := os.ReadFile(file)
	d.Must(err)
	d.Stop()
	d.Binary, d.Env = harness.Cribox, d.Env[:len(d.Env)-1]
	d.Start()
	s.replay()
	names := strings.Fields(string(data))
	if len(names) == 0 {
		d.Fatal("the request passes no step")
	}
	return distinct(names)
}

func distinct(names []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func runsAPod(options ...harness.PodOption) func(*harness.Daemon) *story {
	return func(d *harness.Daemon) *story {
		config := d.PodConfig(options...)
		return &story{
			d: d, prepare: func() {},
			act: func() error {
				_, err := d.Runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config})
				return err
			},
			replay: func() {
				wantOneListed(d, config)
				p, err := d.TryPod(config)
				d.Must(err)
				p.IP()
				if s := p.Status(); s.State != cri.PodSandboxState_SANDBOX_READY {
					d.Errorf("the retried pod is %s", s.State)
				}
				p.Run(harness.Idle()).Exec("true")
				d.RemoveListed()
			},
		}
	}
}

// wantOneListed: at most one pod of this name is listed, and it can be looked at.
func wantOneListed(d *harness.Daemon, config *cri.PodSandboxConfig) {
	d.Helper()
	pods := d.Listed()
	if len(pods) > 1 {
		d.Errorf("%d pods are listed: %v", len(pods), pods)
	}
	for _, p := range pods {
		_, err := d.Runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if status.Code(err) != codes.NotFound { // it may be taken away between the two questions
			d.Must(err)
		}
		if p.Metadata.GetUid() != config.Metadata.Uid {
			d.Errorf("a pod is listed with the metadata %v", p.Metadata)
		}
	}
}

func createsAContainer(inPod []harness.PodOption, options ...harness.ContainerOption) func(*harness.Daemon) *story {
	return func(d *harness.Daemon) *story {
		var p *harness.Pod
		var config *cri.ContainerConfig
		create := func() error {
			_, err := p.TryCreate(config)
			return err
		}
		return &story{
			d: d, act: create,
			prepare: func() { p = d.RunPod(inPod...); config = p.ContainerConfig(append(options, harness.Idle())...) },
			replay: func() {
				c, err := p.TryCreate(config)
				d.Must(err)
				if s := c.Status(); s.State != cri.ContainerState_CONTAINER_CREATED {
					d.Errorf("the retried container is %s", s.State)
				}
				c.Start()
				c.Exec("true")
				p.Stop()
				p.Remove()
			},
		}
	}
}

func startsAContainer(d *harness.Daemon) *story {
	var c *harness.Container
	return &story{
		d: d, act: func() error { return c.TryStart() },
		prepare: func() { c = d.RunPod().Create(harness.Shell("echo one process; exec sleep 1d")) },
		replay: func() {
			switch s := c.Status(); s.State {
			case cri.ContainerState_CONTAINER_CREATED:
				c.Start()
			case cri.ContainerState_CONTAINER_RUNNING:
			default:
				d.Errorf("an interrupted start left the container %s: %s: %s", s.State, s.Reason, s.Message)
				c.Pod.Stop()
				c.Pod.Remove()
				return
			}
			c.Exec("true")
			c.WaitLog("one process")
			if all := d.ProcessesOf(c.ID); len(all) != 1 {
				d.Errorf("the container has %d processes: %v", len(all), all)
			}
			c.Stop(0)
			if got := harness.TextOf(c.FinalLog(), "stdout"); got != "one process\n" {
				d.Errorf("it was started more than once, or its log is torn: %q", got)
			}
			if s := c.Status(); s.ExitCode != 137 {
				d.Errorf("exit code %d", s.ExitCode)
			}
			c.Pod.Stop()
			c.Pod.Remove()
		},
	}
}

// updatesAContainer: whatever was interrupted, the status comes to say what the cgroup has, old or new, and asking again makes it new.
func updatesAContainer(d *harness.Daemon) *story {
	var c *harness.Container
	before, after := &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}, &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 96 << 20, OomScoreAdj: 400}
	return &story{
		d: d, act: func() error { return c.TryUpdate(after) },
		prepare: func() {
			c = d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Linux.Resources = before }))
		},
		replay: func() {
			harness.Eventually(d, "status, spec and cgroup to agree", func() error {
				told, have := c.Limits(), c.Enforced()
				return harness.Unless(told == have && c.SpecLimits() == have, "status %+v, spec %+v, cgroup %+v", told, c.SpecLimits(), have)
			})
			d.Must(c.TryUpdate(after))
			if want := (harness.Enforced{Shares: 2048, Memory: 96 << 20, OOM: 400}); c.Limits() != want || c.Enforced() != want || c.SpecLimits() != want {
				d.Errorf("updated again: status %+v, spec %+v, cgroup %+v", c.Limits(), c.SpecLimits(), c.Enforced())
			}
			c.Pod.Stop()
			c.Pod.Remove()
		},
	}
}

// withHostPort lets a port of the host lead to the pod; nobody uses it.
func withHostPort(c *cri.PodSandboxConfig) {
	c.PortMappings = []*cri.PortMapping{{HostPort: 1, ContainerPort: 80}}
}

// withVolumes mounts the container's own image, whole and in part, and so gives it one more mount.
func withVolumes(c *cri.ContainerConfig) {
	c.Mounts = append(c.Mounts, harness.Volume(c.Image.Image, "", "/volume"), harness.Volume(c.Image.Image, "etc/passwd", "/volumes/passwd"))
}

func removesAPod(inPod []harness.PodOption, options ...harness.ContainerOption) func(*harness.Daemon) *story {
	return func(d *harness.Daemon) *story {
		var p *harness.Pod
		return &story{
			d: d,
			prepare: func() {
				p = d.RunPod(inPod...)
				p.Run(append(options, harness.Idle())...)
				p.Run(harness.Shell("exit 0")).WaitExit()
			},
			act: func() error {
				if _, err := d.Runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
					return err
				}
				_, err := d.Runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
				return err
			},
			replay: func() {
				p.Stop()
				p.Remove()
				if left := d.Listed(); len(left) > 0 {
					d.Errorf("still listed: %v", left)
				}
			},
		}
	}
}

func pullsAnImage(d *harness.Daemon) *story {
	const name = "layers:50"
	return &story{
		d: d, prepare: func() {},
		act: func() error {
			_, err := d.TryPull(d.Ref(name), nil)
			return err
		},
		replay: func() {
			if i := d.ImageStatus(d.Ref(name)); i != nil {
				wantWhole(d, i.Id) // listed, so it is complete
			}
			id, err := d.TryPull(d.Ref(name), nil)
			d.Must(err)
			wantWhole(d, id)
			_, err = d.Images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
			d.Must(err)
		},
	}
}

// wantWhole runs a container of the image that looks at every layer.
func wantWhole(d *harness.Daemon, image string) {
	d.Helper()
	p := d.RunPod()
	c := p.Run(harness.Shell("cat /top; ls /layers | wc -l"), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = image }))
	c.WaitExit()
	if got := strings.Join(strings.Fields(harness.TextOf(c.FinalLog(), "stdout")), " "); got != "50 49" {
		d.Errorf("of fifty layers it sees %q", got)
	}
	p.Stop()
	p.Remove()
}

// TestStepKillBinary is the test of the switch itself.
func TestStepKillBinary(t *testing.T) {
	if _, err := exec.LookPath(harness.Binary(harness.Steps)); err != nil {
		t.Skipf("no binary that dies at a named step: %v", err)
	}
	d := harness.NewDaemon(t)
	d.Stop()
	if !dieAt(d, "pod.recorded") {
		t.Fatal("it died before it was asked for anything")
	}
	_, err := d.TryPod(d.PodConfig())
	harness.WantCode(t, err, codes.Unavailable)
	d.Process.Wait(t)
	d.Heal()
}
