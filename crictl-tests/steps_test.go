package crictltests

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
)

// TestStepKills ends the daemon at every step that a request passes, one after the other, and replays what a kubelet would do.
func TestStepKills(t *testing.T) {
	if _, err := os.Stat(binary(steps)); err != nil {
		t.Skipf("no binary that dies at a named step: %v", err)
	}
	nobodyElse := func(*daemon) {}
	shimToo := func(d *daemon) { d.killRole("shim") }
	for _, row := range []struct {
		name string
		tell func(*daemon) *story
		also func(*daemon) // what dies with the daemon
	}{
		{"RunPodSandbox", runsAPod(), nobodyElse},
		{"RunPodSandbox, shim too", runsAPod(), shimToo},
		{"CreateContainer", createsAContainer(nil), nobodyElse},
		{"StartContainer", startsAContainer, nobodyElse},
		{"StartContainer, shim too", startsAContainer, shimToo},
		{"UpdateContainerResources", updatesAContainer, nobodyElse},
		{"UpdateContainerResources, shim too", updatesAContainer, shimToo},
		{"StopAndRemove", removesAPod(nil), nobodyElse},
		{"StopAndRemove, shim too", removesAPod(nil), shimToo},
		{"PullImage", pullsAnImage, nobodyElse},
		{"RunPodSandbox, user namespace", runsAPod(inUserNamespace), nobodyElse},
		{"CreateContainer, user namespace", createsAContainer([]podOption{inUserNamespace}), nobodyElse},
		{"StopAndRemove, user namespace", removesAPod([]podOption{inUserNamespace}), nobodyElse},
		{"CreateContainer, image volumes", createsAContainer(nil, withVolumes), nobodyElse},
		{"StopAndRemove, image volumes", removesAPod([]podOption{inUserNamespace}, withVolumes), nobodyElse},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			killAtEveryStep(t, row.tell, row.also)
		})
	}
}

// story is a request to be killed in: what comes before it, the request, and what a kubelet does after the crash.
type story struct {
	d       *daemon
	prepare func()
	act     func() error
	replay  func()
}

// killAtEveryStep has the daemon die at each step of the request in turn.
func killAtEveryStep(t *testing.T, tell func(*daemon) *story, also func(*daemon)) {
	d := newDaemon(t, keepsBlobs)
	d.pulled(busybox)
	flat := d.ledger()
	passed := d.stepsOf(tell(d))
	d.wantFlat(flat)
	t.Logf("%d steps: %s", len(passed), strings.Join(passed, " "))
	for _, step := range passed {
		s := tell(d)
		s.prepare()
		d.stop()
		if d.dieAt(step) {
			err := s.act()
			if c := status.Code(err); c != codes.Unavailable {
				t.Errorf("%s: the daemon should have died in the request, but it says: %v", step, err)
			}
		}
		d.process.wait(t)
		also(d)
		d.heal()
		s.replay()
		d.wantFlat(flat)
		if t.Failed() {
			t.Fatalf("after kill at %s", step)
		}
	}
}

// dieAt starts a daemon that ends at the step; false when it passed the step while it started, and is dead already.
func (d *daemon) dieAt(step string) bool {
	d.Helper()
	d.binary = steps
	d.env = append(d.env, "CRIBOX_STEP_KILL="+step)
	d.launch()
	d.binary = cribox
	return d.answers()
}

// stepsOf learns which steps the request passes, by having them written down.
func (d *daemon) stepsOf(s *story) []string {
	d.Helper()
	s.prepare()
	d.stop()
	file := filepath.Join(d.dir, "steps")
	d.must(os.WriteFile(file, nil, 0o600))
	d.binary, d.env = steps, append(d.env, "CRIBOX_STEP_LOG="+file)
	d.start()
	d.must(os.Truncate(file, 0))
	d.must(s.act())
	data, err := os.ReadFile(file)
	d.must(err)
	d.stop()
	d.binary, d.env = cribox, d.env[:len(d.env)-1]
	d.start()
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

func runsAPod(options ...podOption) func(*daemon) *story {
	return func(d *daemon) *story {
		config := d.podConfig(options...)
		return &story{
			d: d, prepare: func() {},
			act: func() error {
				_, err := d.runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config})
				return err
			},
			replay: func() {
				d.wantOneListed(config)
				p, err := d.tryPod(config)
				d.must(err)
				p.ip()
				if s := p.status(); s.State != cri.PodSandboxState_SANDBOX_READY {
					d.Errorf("the retried pod is %s", s.State)
				}
				p.run(idle()).exec("true")
				d.removeListed()
			},
		}
	}
}

// wantOneListed: at most one pod of this name is listed, and it can be looked at.
func (d *daemon) wantOneListed(config *cri.PodSandboxConfig) {
	d.Helper()
	pods := d.listed()
	if len(pods) > 1 {
		d.Errorf("%d pods are listed: %v", len(pods), pods)
	}
	for _, p := range pods {
		_, err := d.runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if status.Code(err) != codes.NotFound { // it may be taken away between the two questions
			d.must(err)
		}
		if p.Metadata.GetUid() != config.Metadata.Uid {
			d.Errorf("a pod is listed with the metadata %v", p.Metadata)
		}
	}
}

func (d *daemon) listed() []*cri.PodSandbox {
	d.Helper()
	r, err := d.runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	d.must(err)
	return r.Items
}

func (d *daemon) removeListed() {
	d.Helper()
	for _, item := range d.listed() {
		p := &pod{daemon: d, id: item.Id}
		p.stop()
		p.remove()
	}
}

func createsAContainer(inPod []podOption, options ...containerOption) func(*daemon) *story {
	return func(d *daemon) *story {
		var p *pod
		var config *cri.ContainerConfig
		create := func() error {
			_, err := p.tryCreate(config)
			return err
		}
		return &story{
			d: d, act: create,
			prepare: func() { p = d.runPod(inPod...); config = p.containerConfig(append(options, idle())...) },
			replay: func() {
				c, err := p.tryCreate(config)
				d.must(err)
				if s := c.status(); s.State != cri.ContainerState_CONTAINER_CREATED {
					d.Errorf("the retried container is %s", s.State)
				}
				c.start()
				c.exec("true")
				p.stop()
				p.remove()
			},
		}
	}
}

func startsAContainer(d *daemon) *story {
	var c *container
	return &story{
		d: d, act: func() error { return c.tryStart() },
		prepare: func() { c = d.runPod().create(shell("echo one process; exec sleep 1d")) },
		replay: func() {
			switch s := c.status(); s.State {
			case cri.ContainerState_CONTAINER_CREATED:
				c.start()
			case cri.ContainerState_CONTAINER_RUNNING:
			default:
				d.Errorf("an interrupted start left the container %s: %s: %s", s.State, s.Reason, s.Message)
				c.pod.stop()
				c.pod.remove()
				return
			}
			c.exec("true")
			c.waitLog("one process")
			if all := d.processesOf(c.id); len(all) != 1 {
				d.Errorf("the container has %d processes: %v", len(all), all)
			}
			c.stop(0)
			if got := text(c.finalLog(), "stdout"); got != "one process\n" {
				d.Errorf("it was started more than once, or its log is torn: %q", got)
			}
			if s := c.status(); s.ExitCode != 137 {
				d.Errorf("exit code %d", s.ExitCode)
			}
			c.pod.stop()
			c.pod.remove()
		},
	}
}

// updatesAContainer: whatever was interrupted, the status comes to say what the cgroup has, old or new, and asking again makes it new.
func updatesAContainer(d *daemon) *story {
	var c *container
	before, after := &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}, &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 96 << 20, OomScoreAdj: 400}
	return &story{
		d: d, act: func() error { return c.tryUpdate(after) },
		prepare: func() {
			c = d.runPod().run(idle(), with(func(c *cri.ContainerConfig) { c.Linux.Resources = before }))
		},
		replay: func() {
			eventually(d, "status, spec and cgroup to agree", func() error {
				told, have := c.limits(), c.enforced()
				return unless(told == have && c.specLimits() == have, "status %+v, spec %+v, cgroup %+v", told, c.specLimits(), have)
			})
			d.must(c.tryUpdate(after))
			if want := (enforced{2048, 96 << 20, 400}); c.limits() != want || c.enforced() != want || c.specLimits() != want {
				d.Errorf("updated again: status %+v, spec %+v, cgroup %+v", c.limits(), c.specLimits(), c.enforced())
			}
			c.pod.stop()
			c.pod.remove()
		},
	}
}

// withVolumes mounts the container's own image, whole and in part, and so gives it one more mount.
func withVolumes(c *cri.ContainerConfig) {
	c.Mounts = append(c.Mounts, volume(c.Image.Image, "", "/volume"), volume(c.Image.Image, "etc/passwd", "/volumes/passwd"))
}

func removesAPod(inPod []podOption, options ...containerOption) func(*daemon) *story {
	return func(d *daemon) *story {
		var p *pod
		return &story{
			d: d,
			prepare: func() {
				p = d.runPod(inPod...)
				p.run(append(options, idle())...)
				p.run(shell("exit 0")).waitExit()
			},
			act: func() error {
				if _, err := d.runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
					return err
				}
				_, err := d.runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
				return err
			},
			replay: func() {
				p.stop()
				p.remove()
				if left := d.listed(); len(left) > 0 {
					d.Errorf("still listed: %v", left)
				}
			},
		}
	}
}

func pullsAnImage(d *daemon) *story {
	const name = "layers:50"
	return &story{
		d: d, prepare: func() {},
		act: func() error {
			_, err := d.tryPull(d.ref(name), nil)
			return err
		},
		replay: func() {
			if i := d.imageStatus(d.ref(name)); i != nil {
				d.wantWhole(i.Id) // listed, so it is complete
			}
			id, err := d.tryPull(d.ref(name), nil)
			d.must(err)
			d.wantWhole(id)
			_, err = d.images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
			d.must(err)
		},
	}
}

// wantWhole runs a container of the image that looks at every layer.
func (d *daemon) wantWhole(image string) {
	d.Helper()
	p := d.runPod()
	c := p.run(shell("cat /top; ls /layers | wc -l"), with(func(c *cri.ContainerConfig) { c.Image.Image = image }))
	c.waitExit()
	if got := strings.Join(strings.Fields(text(c.finalLog(), "stdout")), " "); got != "50 49" {
		d.Errorf("of fifty layers it sees %q", got)
	}
	p.stop()
	p.remove()
}

// TestStepKillBinary is the test of the switch itself.
func TestStepKillBinary(t *testing.T) {
	if _, err := exec.LookPath(binary(steps)); err != nil {
		t.Skipf("no binary that dies at a named step: %v", err)
	}
	d := newDaemon(t)
	d.stop()
	if !d.dieAt("pod.recorded") {
		t.Fatal("it died before it was asked for anything")
	}
	_, err := d.tryPod(d.podConfig())
	wantCode(t, err, codes.Unavailable)
	d.process.wait(t)
	d.heal()
}
