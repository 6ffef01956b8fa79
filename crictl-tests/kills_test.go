package crictltests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const withoutPidfdInfo = "CRIBOX_TEST_NO_PIDFD_INFO=1" // as on a kernel before 6.15

// TestKills: whatever is killed under running containers, they run on, no line is lost or doubled, and exit codes are right.
func TestKills(t *testing.T) {
	for _, row := range []struct {
		name  string
		kill  func(*daemon)
		env   []string
		blind bool // an exit while nobody watched may be Unknown
	}{
		{"daemon", (*daemon).kill, nil, false},
		{"logger", func(d *daemon) { d.killRole("logger") }, nil, false},
		{"shim", func(d *daemon) { d.killRole("shim") }, nil, false},
		{"all", killAll, nil, false},
		{"daemon and shim", func(d *daemon) { d.kill(); d.killRole("shim") }, nil, false},
		{"shim without pidfd info", func(d *daemon) { d.killRole("shim") }, []string{withoutPidfdInfo}, true},
		{"all without pidfd info", killAll, []string{withoutPidfdInfo}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			takeTurn(t)
			d := newDaemon(t, withEnv(row.env...))
			s := newScene(d)
			for round := range 3 {
				s.begin(round)
				row.kill(d)
				s.release(round)
				if d.process.ended() != nil {
					d.start()
				}
				s.wantEnds(round, row.blind)
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

func killAll(d *daemon) {
	d.kill()
	d.killRole("shim")
	d.killRole("logger")
}

// manyLines is more than a test lasts, but not for ever: nobody may be there to stop the printer.
const manyLines = "60000"

// scene is a pod with containers that run through all kills, and in each round some that exit.
type scene struct {
	*pod
	other  *pod
	gates  string // on the host; the containers wait for files in it
	steady []*container
	pids   map[string]int
	ending []*container
}

func newScene(d *daemon) *scene {
	d.Helper()
	s := &scene{pod: d.runPod(), other: d.runPod(), gates: filepath.Join(d.dir, "gates"), pids: map[string]int{}}
	d.must(os.Mkdir(s.gates, 0o755))
	s.steady = []*container{
		s.run(d.tool("print", "-lines", manyLines, "-every", "5ms", "-both")),
		s.run(d.tool("print", "-lines", "5000", "-every", "50ms", "-size", "20000")),
		s.other.run(d.tool("print", "-lines", manyLines, "-every", "10ms")),
		s.other.run(d.tool("print", "-lines", manyLines, "-every", "10ms"), with(func(c *cri.ContainerConfig) { c.Tty = true })),
	}
	for _, c := range s.steady {
		c.waitLog("000003 ")
		s.pids[c.id] = c.pid()
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
		home := s.pod
		if i%2 == 1 {
			home = s.other
		}
		s.ending = append(s.ending, home.run(s.tool(), shell(script), with(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{ContainerPath: "/gates", HostPath: s.gates, Readonly: true}}
		})))
	}
}

// release opens the gate, and returns when the small ones have ended as the host sees it. The others may wait for a reader.
func (s *scene) release(round int) {
	s.Helper()
	s.must(os.WriteFile(filepath.Join(s.gates, fmt.Sprint(round)), nil, 0o600))
	for i, c := range s.ending {
		if endings[i].lines*max(endings[i].size, 8) > 8<<10 {
			continue
		}
		eventually(s, "a container to end", func() error {
			left := s.processesOf(c.id)
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
		e, got := endings[i], c.waitExit()
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
		lines := c.finalLog()
		c.wantNumbers(lines, "stdout", e.lines)
		c.wantNumbers(lines, "stderr", e.lines)
		c.remove()
	}
}

// wantRunning fails unless the steady containers run on in the same processes, and their output still arrives.
func (s *scene) wantRunning() {
	s.Helper()
	for _, c := range s.steady {
		if st := c.status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
			s.Errorf("%s is %s: exit code %d, %s", c.config.Metadata.Name, st.State, st.ExitCode, st.Reason)
			continue
		}
		if pid := c.pid(); pid != s.pids[c.id] {
			s.Errorf("%s was process %d and is %d", c.config.Metadata.Name, s.pids[c.id], pid)
		}
		c.waitMore(200)
		if got := c.exec("echo", "here"); got != "here\n" {
			s.Errorf("exec says %q", got)
		}
	}
	for _, p := range []*pod{s.pod, s.other} {
		if st := p.status(); st.State != cri.PodSandboxState_SANDBOX_READY {
			s.Errorf("pod %s is %s", p.id, st.State)
		}
	}
}

func (s *scene) wantSteadyLogs() {
	s.Helper()
	for _, c := range s.steady {
		c.stop(0)
		if st := c.status(); st.ExitCode != 137 {
			s.Errorf("%s: exit code %d after kill", c.config.Metadata.Name, st.ExitCode)
		}
		lines := dropUnfinished(c.finalLog())
		c.wantNumbers(lines, "stdout", -1)
		if c == s.steady[0] {
			c.wantNumbers(lines, "stderr", -1)
		}
	}
}

// TestKillsUnderLoad kills at moments of chance while containers print and exit by themselves.
func TestKillsUnderLoad(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	d := newDaemon(t)
	p := d.runPod()
	const lines = 2000
	var all []*container
	for i := range 6 {
		all = append(all, p.run(d.tool("print", "-lines", fmt.Sprint(lines), "-every", "2ms", "-both", "-exit", fmt.Sprint(i))))
	}
	for _, kill := range []func(){
		d.restart, func() { d.killRole("logger") }, func() { d.killRole("shim") }, d.restart, func() { killAll(d); d.start() },
		func() { d.killRole("shim") }, func() { d.killRole("logger") },
	} {
		kill()
		all[0].waitMore(2000)
	}
	for i, c := range all {
		if s := c.waitExit(); s.ExitCode != int32(i) {
			t.Errorf("container %d: exit code %d, reason %q", i, s.ExitCode, s.Reason)
		}
		c.wantNumbers(c.finalLog(), "stdout", lines)
		c.wantNumbers(c.finalLog(), "stderr", lines)
	}
}

// waitMore waits for so many more bytes in the log, or for the end of the container.
func (c *container) waitMore(bytes int64) {
	c.Helper()
	had := c.logSize()
	eventually(c, "more output", func() error {
		if c.status().State == cri.ContainerState_CONTAINER_EXITED {
			return nil
		}
		return unless(c.logSize() > had+bytes, "the log had %d bytes and has %d", had, c.logSize())
	})
}

func (c *container) logSize() int64 {
	c.Helper()
	info, err := os.Stat(c.logPath())
	c.must(err)
	return info.Size()
}

// TestShimComesBack: after its death there is one shim again, and only one; everything still works.
func TestShimComesBack(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	for range 3 {
		old := d.waitRole("shim", 0)
		d.killRole("shim")
		d.waitRole("shim", old)
		c.exec("true")
		fresh := c.run(shell("exit 3"))
		if s := fresh.waitExit(); s.ExitCode != 3 {
			t.Errorf("exit code %d", s.ExitCode)
		}
		fresh.remove()
	}
	c.stop(0)
	if s := c.status(); s.ExitCode != 137 {
		t.Errorf("a container adopted three times: exit code %d, reason %q", s.ExitCode, s.Reason)
	}
}

// TestStopOutlivesTheDaemon: a stop that a crash interrupts goes on by itself or when it is asked for again.
func TestStopOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("wait", "-exit", "6"))
	c.waitLog("ready")
	d.restart()
	c.stop(60)
	if s := c.status(); s.ExitCode != 6 {
		t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
	}
	if got := text(c.finalLog(), "stdout"); got != "ready\ngot 15\n" {
		t.Errorf("log %q", got)
	}
}

// TestPodsOutliveTheDaemon: all that was asked and found is told again after kill -9.
func TestPodsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(func(c *cri.PodSandboxConfig) { c.Labels, c.Annotations = awkward, awkward })
	c := p.run(idle(), with(func(c *cri.ContainerConfig) { c.Labels, c.Annotations = awkward, awkward }))
	dead := p.run(shell("exit 9"))
	dead.waitExit()
	podBefore, before, deadBefore := p.status(), c.status(), dead.status()
	d.restart()
	wantEqual(t, "pod status", p.status(), podBefore)
	wantEqual(t, "container status", c.status(), before)
	wantEqual(t, "status of the exited container", dead.status(), deadBefore)
}
