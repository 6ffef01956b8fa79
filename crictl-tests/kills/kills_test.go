package kills

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

const withoutPidfdInfo = "CRIBOX_TEST_NO_PIDFD_INFO=1" // as on a kernel before 6.15

// TestKills: whatever is killed under running containers, they run on, no line is lost or doubled, and exit codes are right.
func TestKills(t *testing.T) {
	for _, row := range []struct {
		name   string
		kill   func(*harness.Daemon)
		env    []string
		noShim bool // an exit while nobody watched may be Unknown, where the kernel does not keep it
	}{
		{"daemon", (*harness.Daemon).Kill, nil, false},
		{"logger", func(d *harness.Daemon) { d.KillRole("logger") }, nil, false},
		{"shim", func(d *harness.Daemon) { d.KillRole("shim") }, nil, true},
		{"all", killAll, nil, true},
		{"daemon and shim", func(d *harness.Daemon) { d.Kill(); d.KillRole("shim") }, nil, true},
		{"shim without pidfd info", func(d *harness.Daemon) { d.KillRole("shim") }, []string{withoutPidfdInfo}, true},
		{"all without pidfd info", killAll, []string{withoutPidfdInfo}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			takeTurn(t)
			blind := row.noShim && (row.env != nil || !harness.ExitsAreKept())
			d := harness.NewDaemon(t, harness.WithEnv(row.env...))
			s := newScene(d)
			for round := range 3 {
				s.begin(round)
				row.kill(d)
				s.release(round)
				if d.Process.Ended() != nil {
					d.Start()
				}
				s.wantEnds(round, blind)
				s.wantRunning()
			}
			s.wantSteadyLogs()
		})
	}
}

// busy is who may have many printing containers at a time: more of them would measure the machine, not the runtime.
var busy = make(chan struct{}, 2)

// takeTurn waits for a turn, and gives it back when the test is over.
func takeTurn(t *testing.T) {
	busy <- struct{}{}
	t.Cleanup(func() { <-busy })
}

func killAll(d *harness.Daemon) {
	d.Kill()
	d.KillRole("shim")
	d.KillRole("logger")
}

// scene is a pod with containers that run through all kills, and in each round some that exit.
type scene struct {
	*harness.Pod
	other  *harness.Pod
	gates  string // on the host; the containers wait for files in it
	steady []*harness.Container
	pids   map[string]int
	ending []*harness.Container
}

func newScene(d *harness.Daemon) *scene {
	d.Helper()
	s := &scene{Pod: d.RunPod(), other: d.RunPod(), gates: filepath.Join(d.Dir, "gates"), pids: map[string]int{}}
	d.Must(os.Mkdir(s.gates, 0o755))
	s.steady = []*harness.Container{
		s.Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "5ms", "-both")),
		s.Run(d.Tool("print", "-lines", "5000", "-every", "50ms", "-size", "20000")),
		s.other.Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "10ms")),
		s.other.Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "10ms"), harness.With(func(c *cri.ContainerConfig) { c.Tty = true })),
	}
	for _, c := range s.steady {
		c.WaitLog("000003 ")
		s.pids[c.ID] = c.PID()
	}
	return s
}

// endings say what a container prints once its gate is open, and how it ends.
var endings = []struct {
	lines, size, code int
}{
	{0, 0, 0}, {1, 0, 1}, {500, 0, 42}, {2000, 300, 137}, {3000, 80, 255},
}

// begin starts the containers of a round; they wait for their gate.
func (s *scene) begin(round int) {
	s.Helper()
	s.ending = nil
	for i, e := range endings {
		gate := fmt.Sprintf("/gates/%d", round)
		script := fmt.Sprintf("until [ -e %s ]; do usleep 5000; done; exec /toolbox print -both -lines %d -size %d -exit %d", gate, e.lines, e.size, e.code)
		if e.lines == 0 {
			script = fmt.Sprintf("until [ -e %s ]; do usleep 5000; done; exit %d", gate, e.code)
		}
		home := s.Pod
		if i%2 == 1 {
			home = s.other
		}
		s.ending = append(s.ending, home.Run(s.Tool(), harness.Shell(script), harness.With(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{ContainerPath: "/gates", HostPath: s.gates, Readonly: true}}
		})))
	}
}

// release opens the gate, and returns when the small ones have ended as the host sees it. The others may wait for a reader.
func (s *scene) release(round int) {
	s.Helper()
	s.Must(os.WriteFile(filepath.Join(s.gates, fmt.Sprint(round)), nil, 0o600))
	for i, c := range s.ending {
		if endings[i].lines*max(endings[i].size, 8) > 8<<10 {
			continue
		}
		harness.Eventually(s, "a container to end", func() error {
			left := s.ProcessesOf(c.ID)
			for _, p := range left {
				if p.State != 'Z' {
					return fmt.Errorf("process %d runs: %s", p.Pid, p.Name())
				}
			}
			return nil
		})
	}
}

func (s *scene) wantEnds(round int, blind bool) {
	s.Helper()
	for i, c := range s.ending {
		e, got := endings[i], c.WaitExit()
		unknown := got.ExitCode == 255 && got.Reason == "Unknown"
		if unknown {
			s.Logf("round %d: nobody saw how the one that should end with %d ended", round, e.code)
		}
		reason := "Error"
		if e.code == 0 {
			reason = "Completed"
		}
		if (got.ExitCode != int32(e.code) || got.Reason != reason) && !(blind && unknown) {
			s.Errorf("round %d: exit code %d, reason %q; want %d, %q", round, got.ExitCode, got.Reason, e.code, reason)
		}
		lines := c.FinalLog()
		c.WantNumbers(lines, "stdout", e.lines)
		c.WantNumbers(lines, "stderr", e.lines)
		c.Remove()
	}
}

// wantRunning fails unless the steady containers run on in the same processes, and their output still arrives.
func (s *scene) wantRunning() {
	s.Helper()
	for _, c := range s.steady {
		if st := c.Status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
			s.Errorf("%s is %s: exit code %d, %s", c.Config.Metadata.Name, st.State, st.ExitCode, st.Reason)
			continue
		}
		if pid := c.PID(); pid != s.pids[c.ID] {
			s.Errorf("%s was process %d and is %d", c.Config.Metadata.Name, s.pids[c.ID], pid)
		}
		waitMore(c, 200)
		if got := c.Exec("echo", "here"); got != "here\n" {
			s.Errorf("exec says %q", got)
		}
	}
	for _, p := range []*harness.Pod{s.Pod, s.other} {
		if st := p.Status(); st.State != cri.PodSandboxState_SANDBOX_READY {
			s.Errorf("pod %s is %s", p.ID, st.State)
		}
	}
}

// wantSteadyLogs stops the steady containers and looks at what they printed. The shim of today need not be their parent.
func (s *scene) wantSteadyLogs() {
	s.Helper()
	for _, c := range s.steady {
		c.Stop(0)
		if st := c.Status(); st.ExitCode != 137 {
			s.Errorf("%s: exit code %d after kill", c.Config.Metadata.Name, st.ExitCode)
		}
		lines := harness.DropUnfinished(c.FinalLog())
		c.WantNumbers(lines, "stdout", -1)
		if c == s.steady[0] {
			c.WantNumbers(lines, "stderr", -1)
		}
	}
}

// TestKillsUnderLoad kills at moments of chance while containers print and exit by themselves.
func TestKillsUnderLoad(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	d := harness.NewDaemon(t)
	p := d.RunPod()
	const lines = 2000
	var all []*harness.Container
	for i := range 6 {
		all = append(all, p.Run(d.Tool("print", "-lines", fmt.Sprint(lines), "-every", "2ms", "-both", "-exit", fmt.Sprint(i))))
	}
	for _, kill := range []func(){
		d.Restart, func() { d.KillRole("logger") }, func() { d.KillRole("shim") }, d.Restart, func() { killAll(d); d.Start() },
		func() { d.KillRole("shim") }, func() { d.KillRole("logger") },
	} {
		kill()
		waitMore(all[0], 2000)
	}
	for i, c := range all {
		if s := c.WaitExit(); s.ExitCode != int32(i) {
			t.Errorf("container %d: exit code %d, reason %q", i, s.ExitCode, s.Reason)
		}
		c.WantNumbers(c.FinalLog(), "stdout", lines)
		c.WantNumbers(c.FinalLog(), "stderr", lines)
	}
}

// waitMore waits for so many more bytes in the log, or for the end of the container.
func waitMore(c *harness.Container, bytes int64) {
	c.Helper()
	had := logSize(c)
	harness.Eventually(c, "more output", func() error {
		if c.Status().State == cri.ContainerState_CONTAINER_EXITED {
			return nil
		}
		return harness.Unless(logSize(c) > had+bytes, "the log had %d bytes and has %d", had, logSize(c))
	})
}

func logSize(c *harness.Container) int64 {
	c.Helper()
	info, err := os.Stat(c.LogPath())
	c.Must(err)
	return info.Size()
}

// TestShimComesBack: after its death there is one shim again, and only one; everything still works.
func TestShimComesBack(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	for range 3 {
		old := d.WaitRole("shim", 0)
		d.KillRole("shim")
		d.WaitRole("shim", old)
		c.Exec("true")
		fresh := c.Run(harness.Shell("exit 3"))
		if s := fresh.WaitExit(); s.ExitCode != 3 {
			t.Errorf("exit code %d", s.ExitCode)
		}
		fresh.Remove()
	}
	c.Stop(0)
	if s := c.Status(); s.ExitCode != 137 {
		t.Errorf("a container adopted three times: exit code %d, reason %q", s.ExitCode, s.Reason)
	}
}

// TestStopOutlivesTheDaemon: a stop that a crash interrupts goes on by itself or when it is asked for again.
func TestStopOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("wait", "-exit", "6"))
	c.WaitLog("ready")
	d.Restart()
	c.Stop(60)
	if s := c.Status(); s.ExitCode != 6 {
		t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
	}
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "ready\ngot 15\n" {
		t.Errorf("log %q", got)
	}
}

// TestPodsOutliveTheDaemon: all that was asked and found is told again after kill -9.
func TestPodsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Labels, c.Annotations = harness.Awkward, harness.Awkward })
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Labels, c.Annotations = harness.Awkward, harness.Awkward }))
	dead := p.Run(harness.Shell("exit 9"))
	dead.WaitExit()
	podBefore, before, deadBefore := p.Status(), c.Status(), dead.Status()
	d.Restart()
	harness.WantEqual(t, "pod status", p.Status(), podBefore)
	harness.WantEqual(t, "container status", c.Status(), before)
	harness.WantEqual(t, "status of the exited container", dead.Status(), deadBefore)
}
