package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A crash test runs the test binary as a daemon that is killed at a step, and then checks what a
// new daemon finds.
const crashEnv = "CRIBOX_CNI_TEST_CRASH"

type crashScript struct {
	Config   Config
	Pod      Pod
	Kill     string // the step at which the process kills itself
	Teardown bool   // run Teardown after Setup
}

func (s crashScript) MarshalJSON() ([]byte, error) {
	c := s.Config
	c.Step = nil
	return json.Marshal(map[string]any{"ConfDir": c.ConfDir, "BinDirs": c.BinDirs, "Default": c.Default, "Subnet": c.Subnet, "Instance": c.Instance,
		"Root": c.Root, "State": c.State, "Pod": map[string]any{"ID": s.Pod.ID, "NetNS": s.Pod.NetNS, "Ports": s.Pod.Ports}, "Kill": s.Kill, "Teardown": s.Teardown})
}

// crash is the main function of that daemon.
func crash(script string) {
	var s struct {
		ConfDir, Subnet, Instance, Root, State, Kill string
		BinDirs                                      []string
		Default, Teardown                            bool
		Pod                                          struct {
			ID, NetNS string
			Ports     []Port
		}
	}
	if err := json.Unmarshal([]byte(script), &s); err != nil {
		panic(err)
	}
	c := Config{ConfDir: s.ConfDir, BinDirs: s.BinDirs, Default: s.Default, Subnet: s.Subnet, Instance: s.Instance, Root: s.Root, State: s.State,
		Step: func(name string) {
			if name == s.Kill {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		}}
	ctx := context.Background()
	n, err := Open(ctx, c)
	if err != nil {
		panic(err)
	}
	p := Pod{ID: s.Pod.ID, Name: "web", Namespace: "default", UID: "u", NetNS: s.Pod.NetNS, Ports: s.Pod.Ports}
	if _, err := n.Setup(ctx, p); err != nil {
		panic(err)
	}
	if s.Teardown {
		if err := n.Teardown(ctx, p); err != nil {
			panic(err)
		}
	}
	fmt.Println("not killed")
	os.Exit(3)
}

func (s crashScript) run(t *testing.T) {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashEnv+"="+string(data))
	out, err := cmd.CombinedOutput()
	if ws := cmd.ProcessState; ws == nil || ws.ExitCode() != -1 {
		t.Fatalf("the daemon was not killed at %s: %v\n%s", s.Kill, err, out)
	}
}

// TestKilledAtStep: a daemon is killed at any step between the record and the cleared debt. A new
// daemon knows the pod and can undo everything.
func TestKilledAtStep(t *testing.T) {
	networks := map[string]func(*host) *fake{
		"default": func(*host) *fake { return nil },
		"foreign": func(h *host) *fake {
			h.conf("10-x.conflist", list("x", "fakenet"))
			return h.fake("fakenet", "", "")
		},
	}
	steps := []struct {
		name     string
		teardown bool
	}{
		{"cni.debt.written", false}, {"cni.add", false}, {"cni.added", false},
		{"cni.del", true}, {"cni.deleted", true}, {"cni.debt.cleared", true},
	}
	builtin := append(steps[:len(steps):len(steps)], []struct {
		name     string
		teardown bool
	}{
		{"cni.lease.taken", false}, {"cni.bridge.ready", false}, {"cni.link.made", false}, {"cni.link.configured", false},
		{"cni.ports.opened", false}, {"cni.ports.closed", true}, {"cni.link.removed", true}, {"cni.lease.released", true},
	}...)
	for kind, install := range networks {
		passed := steps
		if kind == "default" {
			passed = builtin
		}
		for _, step := range passed {
			t.Run(kind+"/"+step.name, func(t *testing.T) {
				real := realPlugins(t)
				h := newHost(t, func(c *Config) { c.Default = true; c.BinDirs = append(c.BinDirs, real) })
				f := install(h)
				before := h.snapshot()
				p := h.pod("p1")
				p.Ports = []Port{{HostPort: 18080, ContainerPort: 80}}
				crashScript{Config: h.c, Pod: p, Kill: step.name, Teardown: step.teardown}.run(t)

				h.reopen()
				if owed := len(h.n.Debts()); owed != 1 && step.name != "cni.debt.cleared" {
					t.Fatalf("debts after the crash: %v", h.n.Debts())
				}
				h.teardown(p)
				h.teardown(p)
				if err := h.n.RemoveNetNS(p.NetNS); err != nil {
					t.Fatal(err)
				}
				if err := h.n.RemoveDefault(t.Context()); err != nil {
					t.Fatal(err)
				}
				if f != nil {
					f.wantLeases(0)
				}
				h.wantSnapshot(before)
				h.reopen()
				h.wantSnapshot(before)
			})
		}
	}
}

// TestSetupAfterCrash: a pod whose Setup was interrupted is set up again under the same id, with
// one lease.
func TestSetupAfterCrash(t *testing.T) {
	h := newHost(t)
	h.conf("10-x.conflist", list("x", "fakenet"))
	f := h.fake("fakenet", "", "")
	p := h.pod("p1")
	crashScript{Config: h.c, Pod: p, Kill: "cni.added"}.run(t)
	f.wantLeases(1)
	h.reopen()
	h.setup(p)
	f.wantLeases(1)
	if f.calls("DEL") != 1 {
		t.Fatalf("calls: %s", f.read("calls"))
	}
	h.teardown(p)
	f.wantLeases(0)
}

// TestDaemonKilledDuringAdd: a plugin that outlives its daemon runs to its end; the new daemon has
// its debt.
func TestDaemonKilledDuringAdd(t *testing.T) {
	h := newHost(t)
	h.conf("10-x.conflist", list("x", "fakenet"))
	f := h.fake("fakenet", `kill -9 $PPID; `+fakeLease+fakeResult, "")
	p := h.pod("p1")
	lock, err := os.OpenFile(filepath.Join(t.TempDir(), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	crashScript{Config: h.c, Pod: p, Kill: "never"}.run(t)
	h.reopen()
	if d := h.n.Debts(); len(d) != 1 || d[0] != "p1" {
		t.Fatalf("debts %v", d)
	}
	h.teardown(p)
	f.wantLeases(0)
}
