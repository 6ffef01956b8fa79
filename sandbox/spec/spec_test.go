package spec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/capability"
	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/limits"
	"github.com/cribox/cribox/sandbox/spec/seccomp"
	"github.com/cribox/cribox/sandbox/spec/users"
)

var update = flag.Bool("update", false, "write the golden files")

// aHost has everything.
func aHost() Host {
	return Host{
		Capabilities: capability.Known(40), OOMScoreAdjMin: -1000,
		Seccomp: true, Machine: seccomp.Machine{Compat32: true}, RecursiveReadOnly: true,
		Controllers: limits.Controllers{CgroupV2: true, HugePageSizes: []string{"2MB", "1GB"}, MemorySwapAccounting: true, CPUs: "0-7\n", Mems: "0"},
	}
}

func aPod() Pod {
	return Pod{
		ID: "pod1", NetNS: "/run/netns/cribox-0a1b2c-pod1", PauseNS: "/proc/4242/ns", Hostname: "web-0",
		Rootfs: "/run/cribox/pause", ShmPath: "/run/cribox/pods/pod1/shm", HostsPath: "/run/cribox/pods/pod1/hosts",
		HostnamePath: "/run/cribox/pods/pod1/hostname", ResolvConfPath: "/run/cribox/pods/pod1/resolv.conf",
		Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "11111111-2222", Attempt: 1},
			Hostname: "web-0", LogDirectory: "/var/log/pods/shop_web-0_11111111-2222",
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent: "/kubepods/burstable/pod11111111-2222",
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				},
			},
		},
	}
}

func aContainer() Container {
	return Container{
		ID: "ctr1", ImageName: "docker.io/library/busybox:1", Rootfs: "/run/cribox/shim/ctr1/rootfs",
		User: users.User{UID: 0, GID: 0, AdditionalGIDs: []uint32{0, 10}, Username: "root", Home: "/root"},
		Image: ocispec.Image{Config: ocispec.ImageConfig{
			Env: []string{"PATH=/bin", "LANG=C"}, Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"},
		}},
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:0123"},
			Linux: &runtimeapi.LinuxContainerConfig{
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
			},
		},
	}
}

func (c *Container) security() *runtimeapi.LinuxContainerSecurityContext {
	return c.Config.Linux.SecurityContext
}

func mustContainer(t *testing.T, h Host, p Pod, c Container) *specs.Spec {
	t.Helper()
	s, _, err := ForContainer(h, p, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustPod(t *testing.T, h Host, p Pod) *specs.Spec {
	t.Helper()
	s, _, err := ForPod(h, p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantInvalid(t *testing.T, err error, field string) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("got %v, want ErrInvalidArgument", err)
	}
	if !strings.Contains(err.Error(), field) {
		t.Errorf("%q does not name the field %s", err, field)
	}
}

func wantPrecondition(t *testing.T, err error) {
	t.Helper()
	if !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("got %v, want ErrFailedPrecondition", err)
	}
}

// golden compares with testdata. What depends on the architecture, the lists
// of a seccomp profile, has its own tests.
func golden(t *testing.T, name string, s *specs.Spec, notes []check.Note) {
	t.Helper()
	out := struct {
		Spec  *specs.Spec
		Notes []check.Note
	}{Spec: s, Notes: notes}
	if s.Linux.Seccomp != nil {
		out.Spec = clone(s)
		out.Spec.Linux.Seccomp.Syscalls, out.Spec.Linux.Seccomp.Architectures = nil, nil
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, '\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(data) {
		t.Errorf("%s differs; run with -update and look at the diff\n%s", path, data)
	}
}

func TestGoldenPods(t *testing.T) {
	for name, change := range map[string]func(*Host, *Pod){
		"pod": func(*Host, *Pod) {},
		"pod-host-namespaces": func(_ *Host, p *Pod) {
			p.NetNS, p.Config.Hostname = "", ""
			p.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE,
			}
		},
		"pod-user-namespace": func(_ *Host, p *Pod) { inUserNamespace(p, nil) },
		"pod-systemd-unprivileged-daemon": func(h *Host, p *Pod) {
			h.SystemdCgroup, h.OOMScoreAdjMin = true, -500
			h.RlimitHard = map[string]uint64{"RLIMIT_NOFILE": 4096}
			p.Config.Linux.CgroupParent = "kubepods-burstable-pod1.slice"
			p.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "1000"}
			p.Config.Linux.SecurityContext.Seccomp = nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, p := aHost(), aPod()
			change(&h, &p)
			s, notes, err := ForPod(h, p)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, s, notes)
		})
	}
}

func TestGoldenContainers(t *testing.T) {
	for name, change := range map[string]func(*Host, *Pod, *Container){
		"container": func(*Host, *Pod, *Container) {},
		"container-privileged": func(_ *Host, p *Pod, c *Container) {
			p.Config.Linux.SecurityContext.Privileged = true
			c.security().Privileged = true
			c.security().MaskedPaths = []string{"/proc/kcore"}
			c.security().ReadonlyPaths = []string{"/proc/sys"}
			c.security().Seccomp = &runtimeapi.SecurityProfile{}
			c.Devices = []Device{{ContainerPath: "/dev/kvm", Type: "c", Major: 10, Minor: 232, Mode: 0o660, GID: 78, Permissions: "rwm"}}
		},
		"container-restricted": func(_ *Host, _ *Pod, c *Container) {
			c.User = users.User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 2000}, Home: "/home/app"}
			sc := c.security()
			sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			sc.MaskedPaths = []string{"/proc/kcore", "/sys/firmware"}
			sc.ReadonlyPaths = []string{"/proc/sys"}
		},
		"container-everything": func(h *Host, _ *Pod, c *Container) {
			h.PidsLimit, h.OOMScoreAdjMin = 4096, 0
			c.Config.Command, c.Config.Args = []string{"/app"}, []string{"--serve"}
			c.Config.WorkingDir, c.Config.Tty = "/srv/../srv/app", true
			c.Config.Envs = []*runtimeapi.KeyValue{{Key: "LANG", Value: []byte("fr")}, {Key: "EMPTY"}}
			c.Config.Annotations = map[string]string{"org.systemd.property.ExecStopPost": "'/bin/evil'"}
			c.Config.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/data/deep/er", HostPath: "/mnt/c"},
				{ContainerPath: "/data", HostPath: "/mnt/a", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}},
				{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/hosts"},
				{ContainerPath: "/shared", HostPath: "/mnt/s", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
				{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "sha256:77"}, Readonly: true},
			}
			c.Mounts = []Mount{{Source: "/mnt/c"}, {Source: "/mnt/real-a"}, {Source: "/var/lib/kubelet/hosts"}, {Source: "/mnt/s", Shared: true}, {Source: "/run/cribox/images/77"}}
			c.Volumes = []Volume{{"/var/cache", "/run/cribox/v1"}, {"/data", "/run/cribox/v2"}}
			c.Devices = []Device{{ContainerPath: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Permissions: "rw"}}
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuShares: 1, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0-3", MemoryLimitInBytes: 64 << 20, OomScoreAdj: -998,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 0}, {PageSize: "64KB", Limit: 0}},
				Unified:        map[string]string{"memory.high": "max", "memory.oom.group": "1"},
			}
		},
		"container-systemd": func(h *Host, p *Pod, c *Container) {
			h.SystemdCgroup, h.CgroupParent = true, "cribox_0a1b2c.slice"
			p.Config.Linux.CgroupParent = ""
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0-1", MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
				Unified:        map[string]string{"memory.high": "60000000", "memory.min": "0", "memory.oom.group": "1", "io.max": "8:0 rbps=1048576", "pids.max": "100"},
			}
		},
		"container-user-namespace": func(_ *Host, p *Pod, c *Container) {
			inUserNamespace(p, c)
			uids, gids := mappings()
			c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/mnt/a", UidMappings: uids, GidMappings: gids}}
			c.Mounts = []Mount{{Source: "/mnt/real-a"}}
			c.Devices = []Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/other", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Permissions: "rw"}}
		},
		"container-user-namespace-host-network": func(_ *Host, p *Pod, c *Container) {
			inUserNamespace(p, c)
			p.NetNS, p.Config.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
			c.security().NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		},
		"container-in-host-pod": func(h *Host, p *Pod, c *Container) {
			h.CgroupV2 = false
			p.NetNS, p.ShmPath = "", ""
			p.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE,
			}
			c.security().NamespaceOptions = nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, p, c := aHost(), aPod(), aContainer()
			change(&h, &p, &c)
			s, notes, err := ForContainer(h, p, c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, s, notes)
		})
	}
}

// TestSameInputSameSpec: maps in the request must not shuffle the spec.
func TestSameInputSameSpec(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	c.Image.Config.Volumes = map[string]struct{}{"/a": {}, "/b": {}, "/c": {}, "/d": {}}
	for _, v := range ImageVolumes(c.Image, c.Config) {
		c.Volumes = append(c.Volumes, Volume{v, "/v" + v})
	}
	p.Config.Annotations = map[string]string{"a": "1", "b": "2", "c": "3"}
	first, _ := json.Marshal(mustContainer(t, h, p, c))
	for range 50 {
		again, _ := json.Marshal(mustContainer(t, h, p, c))
		if string(again) != string(first) {
			t.Fatalf("differs:\n%s\n%s", first, again)
		}
	}
}

// TestNothingShared (SEC-06): writing all over one spec changes no other, nor the input.
func TestNothingShared(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	c.security().MaskedPaths = []string{"/proc/kcore"}
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: "/m", MountOptions: []string{"nodev"}}}
	c.Mounts = []Mount{{Source: "/m"}}
	h.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
	before, _ := json.Marshal([]any{h, p.Config, c})
	first := mustContainer(t, h, p, c)
	reference, _ := json.Marshal(first)
	scribble := func(list []string) {
		for i := range list {
			list[i] = "scribble"
		}
	}
	scribble(first.Process.Env)
	scribble(first.Process.Args)
	scribble(first.Process.Capabilities.Bounding)
	scribble(first.Process.Capabilities.Effective)
	scribble(first.Linux.MaskedPaths)
	first.Process.Rlimits[0].Hard = 99
	first.Process.User.AdditionalGids[0] = 99
	for i := range first.Mounts {
		scribble(first.Mounts[i].Options)
	}
	if after, _ := json.Marshal([]any{h, p.Config, c}); string(after) != string(before) {
		t.Errorf("the input has changed:\n%s\n%s", before, after)
	}
	if second, _ := json.Marshal(mustContainer(t, h, p, c)); string(second) != string(reference) {
		t.Errorf("the second spec has changed:\n%s\n%s", reference, second)
	}
}

// TestAnnotationsStayOutside (SEC-10, 11, 12).
func TestAnnotationsStayOutside(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	hostile := map[string]string{
		"org.systemd.property.ExecStopPost": "[['/bin/evil']]", "org.systemd.property.SuccessAction": "'reboot'",
		"run.oci.hooks.stderr": "/x", "io.katacontainers.config.hypervisor.path": "/x", "module.wasm.image/variant": "compat",
		"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true",
		"cgroup.memory.max": "max", "Memory.Max": "max", "containerd.io/restart.loguri": "binary:///bin/evil",
	}
	p.Config.Annotations, p.Config.Labels = hostile, hostile
	c.Config.Annotations, c.Config.Labels, c.Image.Config.Labels = hostile, hostile, hostile
	ours := []string{AnnotationType, AnnotationPodID, AnnotationPodName, AnnotationPodNamespace, AnnotationPodUID, AnnotationContainerName, AnnotationImageName}
	for what, s := range map[string]*specs.Spec{"sandbox": mustPod(t, h, p), "container": mustContainer(t, h, p, c)} {
		for k := range s.Annotations {
			if !slices.Contains(ours, k) {
				t.Errorf("%s: annotation %s got through", what, k)
			}
		}
		if s.Annotations[AnnotationType] != what {
			t.Errorf("%s is called %q", what, s.Annotations[AnnotationType])
		}
		if s.Hooks != nil || len(s.Linux.Resources.Unified) != 0 {
			t.Errorf("%s: hooks or unified resources out of nothing", what)
		}
	}
}
