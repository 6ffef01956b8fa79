package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestSecondDaemon: two on one root would destroy it, so the second leaves at once and says who is there.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	first := harness.NewDaemon(t)
	for name, args := range map[string][]string{
		"same root and state":    nil,
		"same root, other state": {"--state", filepath.Join(first.Dir, "run2"), "--listen", "unix://" + first.Dir + "/2.sock"},
		"other root, same state": {"--root", filepath.Join(first.Dir, "root2"), "--listen", "unix://" + first.Dir + "/2.sock"},
	} {
		cmd := harness.Command(harness.Cribox, append([]string{"serve", "--config", first.ConfigFile()}, args...)...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		first.Must(cmd.Start())
		second := harness.Watch(cmd)
		select {
		case <-second.Done:
		case <-time.After(harness.Patience):
			_ = cmd.Process.Kill()
			t.Errorf("%s: the second daemon still runs after %s", name, harness.Patience)
			second.Wait(t)
			continue
		}
		if cmd.ProcessState.ExitCode() == 0 || !strings.Contains(out.String(), fmt.Sprint(first.Process.PID())) {
			t.Errorf("%s: exit code %d, and it does not name the first's pid %d:\n%s", name, cmd.ProcessState.ExitCode(), first.Process.PID(), out.String())
		}
	}
	first.RunPod()
}

// TestTwoDaemons: with folders of their own they live side by side, networks and shims included.
func TestTwoDaemons(t *testing.T) {
	t.Parallel()
	a, b := harness.NewDaemon(t), harness.NewDaemon(t)
	if a.WaitRole("shim", 0) == b.WaitRole("shim", 0) || a.WaitRole("logger", 0) == b.WaitRole("logger", 0) {
		t.Fatal("two daemons share a shim or a logger")
	}
	config := a.PodConfig()
	inA, err := a.TryPod(config)
	a.Must(err)
	inB, err := b.TryPod(config)
	b.Must(err)
	inA.Run(harness.Idle()).Exec("true")
	c := inB.Run(harness.Idle())
	inA.Stop()
	inA.Remove()
	a.Shutdown()
	c.Exec("true")
	if s := inB.Status(); s.State != cri.PodSandboxState_SANDBOX_READY || s.Network.GetIp() == "" {
		t.Errorf("the other daemon's pod is %s", s.State)
	}
	b.RunPod()
	a.Start()
}

func TestConfigurationErrors(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		text  string
		words []string
	}{
		"unknown key":        {"log_level = \"info\"\nlogg_level = \"debug\"\n", []string{"logg_level", "2"}},
		"unknown nested key": {"[network]\n\nbridge = \"x\"\n", []string{"bridge", "3"}},
		"unknown section":    {"\n\n[nettwork]\ndefault = true\n", []string{"nettwork"}},
		"wrong type":         {"log_level = 5\n", []string{"log_level", "1"}},
		"bad level":          {"\nlog_level = \"shouting\"\n", []string{"log_level", "shouting", "2"}},
		"bad subnet":         {"[network]\nsubnet = \"10.0.0.0/99\"\n", []string{"subnet", "10.0.0.0/99", "2"}},
		"bad listen":         {"listen = \"tcp://0.0.0.0:80\"\n", []string{"listen", "1"}},
		"unknown default":    {"default_runtime = \"nope\"\n", []string{"default_runtime", "nope"}},
		"relative root":      {"root = \"here\"\n", []string{"root", "1"}},
		"not TOML":           {"listen = \"x\"\n{\"json\": true}\n", []string{"2"}},
		"binary":             {"\x00\x01\x02", []string{"1"}},
	} {
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, verb := range []string{"serve", "config"} {
			cmd := harness.Command(harness.Cribox, verb, "--config", file)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("%s: cribox %s accepted it", name, verb)
			}
			for _, w := range append(row.words, file) {
				if !strings.Contains(string(out), w) {
					t.Errorf("%s: cribox %s should name %q:\n%s", name, verb, w, out)
				}
			}
		}
	}
	if out, err := harness.Command(harness.Cribox, "serve", "--config", "/no/such/config.toml").CombinedOutput(); err == nil || !strings.Contains(string(out), "/no/such/config.toml") {
		t.Errorf("a configuration that does not exist: %v\n%s", err, out)
	}
}

// TestConfigRoundTrip: what `cribox config` prints is a configuration that means the same.
func TestConfigRoundTrip(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t)
	first, err := harness.Command(harness.Cribox, "config", "--config", d.ConfigFile()).Output()
	d.Must(err)
	for _, want := range []string{d.Root, d.State, d.Socket, d.Subnet, "# "} {
		if !strings.Contains(string(first), want) {
			t.Errorf("cribox config does not print %q:\n%s", want, first)
		}
	}
	printed := filepath.Join(d.Dir, "printed.toml")
	d.Must(os.WriteFile(printed, first, 0o600))
	second, err := harness.Command(harness.Cribox, "config", "--config", printed).Output()
	d.Must(err)
	if string(second) != string(first) {
		t.Errorf("it reads back as\n%s\nwant\n%s", second, first)
	}
}

func TestVersionAndCheck(t *testing.T) {
	t.Parallel()
	out, err := harness.Command(harness.Cribox, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cribox") {
		t.Errorf("cribox version: %v\n%s", err, out)
	}
	d := harness.PrepareDaemon(t)
	out, err = harness.Command(harness.Cribox, "check", "--config", d.ConfigFile()).CombinedOutput()
	if err != nil {
		t.Errorf("cribox check on a host that runs these tests: %v\n%s", err, out)
	}
	for _, want := range []string{"runc", "cgroup", "overlay", "seccomp", "AppArmor", "SELinux", "cgroup driver", "swap", "id-mapped mounts", "user namespaces"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("cribox check does not speak of %s:\n%s", want, out)
		}
	}
	broken := strings.Replace(d.Configuration(), harness.Binary("runc"), "/no/such/runc", 1)
	d.Must(os.WriteFile(d.ConfigFile(), []byte(broken), 0o600))
	out, err = harness.Command(harness.Cribox, "check", "--config", d.ConfigFile()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "/no/such/runc") {
		t.Errorf("cribox check without runc: %v\n%s", err, out)
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // nobody is there to make cgroups
		d.Must(os.WriteFile(d.ConfigFile(), []byte("cgroup_driver = 'systemd'\n"+d.Configuration()), 0o600))
		for _, verb := range []string{"check", "serve"} {
			out, err := harness.Command(harness.Cribox, verb, "--config", d.ConfigFile()).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "cgroup_driver is systemd") {
				t.Errorf("cribox %s without systemd: %v\n%s", verb, err, out)
			}
		}
	}
	if out, err := harness.Command(harness.Cribox, "no-such-verb").CombinedOutput(); err == nil || !strings.Contains(string(out), "no-such-verb") {
		t.Errorf("an unknown verb: %v\n%s", err, out)
	}
}

// TestSocketIsPrivate: who may write to it is root.
func TestSocketIsPrivate(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	info, err := os.Stat(d.Socket)
	d.Must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %o", info.Mode().Perm())
	}
	for _, name := range []string{"shim.sock", "logger.sock"} {
		info, err := os.Stat(filepath.Join(d.State, name))
		d.Must(err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
}

// TestShutdownRefusesWhileSomethingRuns: a shim is never taken away from its containers.
func TestShutdownRefusesWhileSomethingRuns(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	shim := d.WaitRole("shim", 0)
	d.Stop()
	out, err := harness.Command(harness.Cribox, "shutdown", "--config", d.ConfigFile(), "--state", d.State).CombinedOutput()
	if err == nil {
		t.Errorf("cribox shutdown ended the shim under a running container:\n%s", out)
	}
	if !harness.Alive(shim) {
		t.Error("the shim is gone")
	}
	d.Start()
	c.Exec("true")
}

// TestStopOfTheDaemon: a polite end leaves what runs alone.
func TestStopOfTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "1ms"))
	pid := c.PID()
	d.Stop()
	if !harness.Alive(pid) {
		t.Fatal("the container ended with the daemon")
	}
	d.Start()
	if got := c.PID(); got != pid {
		t.Errorf("process %d, was %d", got, pid)
	}
	c.Stop(0)
	c.WantNumbers(harness.DropUnfinished(c.FinalLog()), "stdout", -1)
}

// TestTornRecord: a record that cannot be read costs its pod, not the boot.
func TestTornRecord(t *testing.T) {
	t.Parallel()
	for name, option := range map[string]harness.PodOption{"plain": func(*cri.PodSandboxConfig) {}, "user namespace": harness.InUserNamespace} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			loseRecord(t, option)
		})
	}
}

// loseRecord tears the record of a pod with a container; all that the pod had must be found without it.
func loseRecord(t *testing.T, option harness.PodOption) {
	d := harness.NewDaemon(t)
	p, kept := d.RunPod(option), d.RunPod()
	p.Run(harness.Idle())
	d.Kill()
	torn := 0
	d.Must(filepath.WalkDir(filepath.Join(d.Root, "pods", p.ID), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			torn++
			return os.WriteFile(path, []byte("\x00\x00\x00"), 0o600)
		}
		return err
	}))
	if torn == 0 {
		t.Fatal("the pod has no record")
	}
	d.Start()
	if s := kept.Status(); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the other pod is %s", s.State)
	}
	p.Remove()
	_, err := d.Runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	d.Must(err)
}
