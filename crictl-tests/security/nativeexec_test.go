package security

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// commandKind is a container whose commands differ from those of the others.
type commandKind struct {
	name      string
	pod       func(*cri.PodSandboxConfig)
	container func(*cri.ContainerConfig)
}

func inPod(name string, change func(*cri.PodSandboxConfig)) commandKind {
	return commandKind{name, change, func(*cri.ContainerConfig) {}}
}

func inContainer(name string, change func(*cri.ContainerConfig)) commandKind {
	return commandKind{name, func(*cri.PodSandboxConfig) {}, change}
}

func secured(name string, change func(*cri.LinuxContainerSecurityContext)) commandKind {
	return inContainer(name, func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) })
}

// commandKinds has the profile of a file for those that are confined by one.
func commandKinds(profile string) []commandKind {
	return []commandKind{
		inPod("default", func(*cri.PodSandboxConfig) {}),
		{"privileged", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }, func(c *cri.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.Privileged, s.Seccomp = true, &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
			s.MaskedPaths, s.ReadonlyPaths = nil, nil
		}},
		secured("user, groups, read-only", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 2000}, []int64{3000, 4000}
			s.ReadonlyRootfs = true
		}),
		inPod("host network", harness.OnHostNetwork),
		inPod("host pid", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE }),
		inPod("host ipc", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE }),
		inPod("shared pid", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD }),
		inPod("sysctls", func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.msgmax": "4096"} }),
		secured("capabilities added and dropped", func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_PTRACE"}, DropCapabilities: []string{"CHOWN", "KILL"}}
		}),
		secured("no capabilities, ambient ones", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser = &cri.Int64Value{Value: 1000}
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}),
		secured("profile of a file", func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = harness.Localhost(profile) }),
		secured("unconfined", func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}),
		secured("no new privileges", func(s *cri.LinuxContainerSecurityContext) {
			s.NoNewPrivs = true
			s.RunAsUser = &cri.Int64Value{Value: 1000}
		}),
		inContainer("folder, variables, limits", func(c *cri.ContainerConfig) {
			c.WorkingDir = "/tmp"
			c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "A", Value: []byte("2")}, {Key: "B", Value: nil}, {Key: "HOME", Value: []byte("/h")}}
			c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, OomScoreAdj: 500, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0"}
		}),
	}
}

// TestSEC82NativeExecIsRuncs: a command that was executed without the runtime is, line by line, what runc makes of the same request.
func TestSEC82NativeExecIsRuncs(t *testing.T) {
	t.Parallel()
	byRunc, native := nativeExecDaemons(t)
	profile := filepath.Join(native.Dir, "profile.json")
	native.Must(os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600))
	for _, kind := range commandKinds(profile) {
		t.Run(kind.name, func(t *testing.T) {
			want := commandPortrait(t, byRunc.RunPod(kind.pod).Run(harness.Idle(), kind.container))
			got := commandPortrait(t, native.RunPod(kind.pod).Run(harness.Idle(), kind.container).UntilNative())
			for _, key := range sortedKeys(want, got) {
				if want[key] != got[key] {
					t.Errorf("%s\n  by runc:  %q\n  natively: %q", key, want[key], got[key])
				}
			}
			if len(want) < 100 {
				t.Errorf("only %d properties were compared", len(want))
			}
		})
	}
}

func nativeExecDaemons(t *testing.T) (byRunc, native *harness.Daemon) {
	t.Helper()
	return harness.NewDaemon(t, harness.WithTop(`exec = "runtime"`)), harness.NewDaemon(t)
}

// commandPortrait is all that can be seen of a command in a container, without what differs between any two.
func commandPortrait(t *testing.T, c *harness.Container) map[string]string {
	t.Helper()
	mark := "100000" + fmt.Sprint(harness.Names.Add(1))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", mark}})
	}()
	defer func() {
		cancel()
		<-done
		c.WantNoProcess(c, mark)
	}()
	pid := 0
	harness.Eventually(t, "the command", func() error {
		for _, p := range c.ProcessesOf(c.ID) {
			if p.State == 'S' && len(p.Args) == 2 && p.Args[1] == mark {
				pid = p.Pid
				// Its parent is the runtime until that has ended.
				status := harness.HostFile(t, fmt.Sprintf("/proc/%d/status", pid))
				return harness.Unless(strings.Contains(status, fmt.Sprintf("\nPPid:\t%d\n", c.Role("shim"))), "the shim is not its parent")
			}
		}
		return fmt.Errorf("it does not sleep")
	})
	return processPortrait(t, c.Pod, pid, c.ID, mark, c.Config.Metadata.Name)
}

// TestSEC82ErrorsAreRuncs: a command that cannot be executed has the same exit code and error, whoever tried it first.
func TestSEC82ErrorsAreRuncs(t *testing.T) {
	t.Parallel()
	byRunc, native := nativeExecDaemons(t)
	kind := inContainer("", func(c *cri.ContainerConfig) { c.WorkingDir = "/work" })
	a, b := byRunc.RunPod().Run(harness.Idle(), kind.container), native.RunPod().Run(harness.Idle(), kind.container).UntilNative()
	both := func(args ...string) {
		t.Helper()
		want, wantErr := a.TryExec(60, args...)
		got, gotErr := b.TryExec(60, args...)
		plain := func(r harness.ExecResult, err error, id string) string {
			return strings.ReplaceAll(fmt.Sprint(r.Code, r.Stdout, r.Stderr, err), id, "ID")
		}
		if plain(want, wantErr, a.ID) != plain(got, gotErr, b.ID) {
			t.Errorf("%q\n  by runc:  %v\n  natively: %v", args, plain(want, wantErr, a.ID), plain(got, gotErr, b.ID))
		}
	}
	const script = "echo text >/text; echo '#!/nothing' >/script; chmod 755 /script; echo nonsense >/nonsense; chmod 755 /nonsense"
	a.Exec("sh", "-c", script)
	b.Exec("sh", "-c", script)
	both("true")
	both("sh", "-c", "echo out; echo errors >&2; exit 7")
	both("sh", "-c", "kill -9 $$")
	both("nothing")
	both("/nothing")
	both("./nothing")
	both("/tmp")
	both("/text")
	both("/script")
	both("/nonsense")
	both("/text/below")
	before := native.ByRuntime()
	both("nothing")
	if native.ByRuntime() != before+1 {
		t.Error("the runtime was not asked why")
	}
	a.Exec("rmdir", "/work")
	b.Exec("rmdir", "/work")
	both("true")
}
