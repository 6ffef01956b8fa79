package crictltests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecondDaemon: two on one root would destroy it, so the second leaves at once and says who is there.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	first := newDaemon(t)
	for name, args := range map[string][]string{
		"same root and state":    nil,
		"same root, other state": {"--state", filepath.Join(first.dir, "run2"), "--listen", "unix://" + first.dir + "/2.sock"},
		"other root, same state": {"--root", filepath.Join(first.dir, "root2"), "--listen", "unix://" + first.dir + "/2.sock"},
	} {
		cmd := command(cribox, append([]string{"serve", "--config", first.configFile()}, args...)...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		first.must(cmd.Start())
		second := watch(cmd)
		select {
		case <-second.done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			t.Errorf("%s: the second daemon still runs after %s", name, patience)
			second.wait(t)
			continue
		}
		if cmd.ProcessState.ExitCode() == 0 || !strings.Contains(out.String(), fmt.Sprint(first.process.pid())) {
			t.Errorf("%s: exit code %d, and it does not name the first's pid %d:\n%s", name, cmd.ProcessState.ExitCode(), first.process.pid(), out.String())
		}
	}
	first.runPod()
}

// TestTwoDaemons: with folders of their own they live side by side, networks and shims included.
func TestTwoDaemons(t *testing.T) {
	t.Parallel()
	a, b := newDaemon(t), newDaemon(t)
	if a.waitRole("shim", 0) == b.waitRole("shim", 0) || a.waitRole("logger", 0) == b.waitRole("logger", 0) {
		t.Fatal("two daemons share a shim or a logger")
	}
	config := a.podConfig()
	inA, err := a.tryPod(config)
	a.must(err)
	inB, err := b.tryPod(config)
	b.must(err)
	inA.run(idle()).exec("true")
	c := inB.run(idle())
	inA.stop()
	inA.remove()
	a.shutdown()
	c.exec("true")
	if s := inB.status(); s.State != cri.PodSandboxState_SANDBOX_READY || s.Network.GetIp() == "" {
		t.Errorf("the other daemon's pod is %s", s.State)
	}
	b.runPod()
	a.start()
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
			cmd := command(cribox, verb, "--config", file)
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
	if out, err := command(cribox, "serve", "--config", "/no/such/config.toml").CombinedOutput(); err == nil || !strings.Contains(string(out), "/no/such/config.toml") {
		t.Errorf("a configuration that does not exist: %v\n%s", err, out)
	}
}

// TestConfigPrintsWhatItReads: what `cribox config` prints is a configuration that means the same.
func TestConfigPrintsWhatItReads(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t)
	first, err := command(cribox, "config", "--config", d.configFile()).Output()
	d.must(err)
	for _, want := range []string{d.root, d.state, d.socket, d.subnet, "# "} {
		if !strings.Contains(string(first), want) {
			t.Errorf("cribox config does not print %q:\n%s", want, first)
		}
	}
	printed := filepath.Join(d.dir, "printed.toml")
	d.must(os.WriteFile(printed, first, 0o600))
	second, err := command(cribox, "config", "--config", printed).Output()
	d.must(err)
	if string(second) != string(first) {
		t.Errorf("it reads back as\n%s\nwant\n%s", second, first)
	}
}

func TestVersionAndCheck(t *testing.T) {
	t.Parallel()
	out, err := command(cribox, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cribox") {
		t.Errorf("cribox version: %v\n%s", err, out)
	}
	d := prepareDaemon(t)
	out, err = command(cribox, "check", "--config", d.configFile()).CombinedOutput()
	if err != nil {
		t.Errorf("cribox check on a host that runs these tests: %v\n%s", err, out)
	}
	for _, want := range []string{"runc", "cgroup", "overlay", "seccomp", "AppArmor", "SELinux", "cgroup driver", "swap", "id-mapped mounts", "user namespaces"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("cribox check does not speak of %s:\n%s", want, out)
		}
	}
	broken := strings.Replace(d.configuration(), binary("runc"), "/no/such/runc", 1)
	d.must(os.WriteFile(d.configFile(), []byte(broken), 0o600))
	out, err = command(cribox, "check", "--config", d.configFile()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "/no/such/runc") {
		t.Errorf("cribox check without runc: %v\n%s", err, out)
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // nobody is there to make cgroups
		d.must(os.WriteFile(d.configFile(), []byte("cgroup_driver = 'systemd'\n"+d.configuration()), 0o600))
		for _, verb := range []string{"check", "serve"} {
			out, err := command(cribox, verb, "--config", d.configFile()).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "cgroup_driver is systemd") {
				t.Errorf("cribox %s without systemd: %v\n%s", verb, err, out)
			}
		}
	}
	if out, err := command(cribox, "no-such-verb").CombinedOutput(); err == nil || !strings.Contains(string(out), "no-such-verb") {
		t.Errorf("an unknown verb: %v\n%s", err, out)
	}
}

// TestSocketIsPrivate: who may write to it is root.
func TestSocketIsPrivate(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	info, err := os.Stat(d.socket)
	d.must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %o", info.Mode().Perm())
	}
	for _, name := range []string{"shim.sock", "logger.sock"} {
		info, err := os.Stat(filepath.Join(d.state, name))
		d.must(err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
}

// TestShutdownRefusesWhileSomethingRuns: a shim is never taken away from its containers.
func TestShutdownRefusesWhileSomethingRuns(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	shim := d.waitRole("shim", 0)
	d.stop()
	out, err := command(cribox, "shutdown", "--config", d.configFile(), "--state", d.state).CombinedOutput()
	if err == nil {
		t.Errorf("cribox shutdown ended the shim under a running container:\n%s", out)
	}
	if !alive(shim) {
		t.Error("the shim is gone")
	}
	d.start()
	c.exec("true")
}

// TestStopOfTheDaemon: a polite end leaves what runs alone.
func TestStopOfTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("print", "-lines", manyLines, "-every", "1ms"))
	pid := c.pid()
	d.stop()
	if !alive(pid) {
		t.Fatal("the container ended with the daemon")
	}
	d.start()
	if got := c.pid(); got != pid {
		t.Errorf("process %d, was %d", got, pid)
	}
	c.stop(0)
	c.wantNumbers(dropUnfinished(c.finalLog()), "stdout", -1)
}

// TestTornRecord: a record that cannot be read costs its pod, not the boot.
func TestTornRecord(t *testing.T) {
	t.Parallel()
	for name, option := range map[string]podOption{"plain": func(*cri.PodSandboxConfig) {}, "user namespace": inUserNamespace} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			loseRecord(t, option)
		})
	}
}

// loseRecord tears the record of a pod with a container; all that the pod had must be found without it.
func loseRecord(t *testing.T, option podOption) {
	d := newDaemon(t)
	p, kept := d.runPod(option), d.runPod()
	p.run(idle())
	d.kill()
	torn := 0
	d.must(filepath.WalkDir(filepath.Join(d.root, "pods", p.id), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			torn++
			return os.WriteFile(path, []byte("\x00\x00\x00"), 0o600)
		}
		return err
	}))
	if torn == 0 {
		t.Fatal("the pod has no record")
	}
	d.start()
	if s := kept.status(); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the other pod is %s", s.State)
	}
	p.remove()
	_, err := d.runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	d.must(err)
}
