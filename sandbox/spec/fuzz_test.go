package spec

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/signals"
	"github.com/cribox/cribox/sandbox/spec/users"
)

// FuzzForContainer: whatever is asked, by request and image, an answer and no
// panic; and what doc.go promises about every spec.
func FuzzForContainer(f *testing.F) {
	seed := func(p Pod, c Container) {
		pod, err := proto.Marshal(p.Config)
		if err != nil {
			f.Fatal(err)
		}
		container, err := proto.Marshal(c.Config)
		if err != nil {
			f.Fatal(err)
		}
		image, err := json.Marshal(c.Image)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pod, container, image, []byte(`{"defaultAction":"SCMP_ACT_ERRNO"}`), "app:audio", passwd, group, uint32(0))
	}
	seed(aPod(), aContainer())
	p, c := aPod(), aContainer()
	p.Config.Linux.SecurityContext.Privileged, c.security().Privileged = true, true
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b", Propagation: 1}, {ContainerPath: "/c", Image: &runtimeapi.ImageSpec{Image: "x"}, Readonly: true}}
	c.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: "/dev/y", Permissions: "r"}}
	c.security().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"KILL"}}
	c.security().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p"}
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 3, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}, Unified: map[string]string{"memory.high": "1"}, CpusetCpus: "0-2"}
	seed(p, c)

	f.Fuzz(func(t *testing.T, pod, container, image, profile []byte, imageUser string, passwd, group []byte, flags uint32) {
		p, c := aPod(), aContainer()
		p.Config, c.Config, c.Image = &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}, ocispec.Image{}
		if proto.Unmarshal(pod, p.Config) != nil || proto.Unmarshal(container, c.Config) != nil {
			return
		}
		_ = json.Unmarshal(image, &c.Image)
		c.SeccompProfile = profile
		h := aHost()
		h.CgroupV2, h.SystemdCgroup = flags&1 != 0, flags&2 != 0
		h.AppArmor, h.SELinux, h.Seccomp = flags&4 != 0, flags&8 != 0, flags&16 == 0
		if flags&32 != 0 {
			p.Config, c.Config = nil, nil
		}
		if flags&64 != 0 {
			p.NetNS = ""
		}
		var err error
		if c.User, err = users.Resolve(imageUser, c.Config.GetLinux().GetSecurityContext(), passwd, group); err == nil {
			checkUserPromises(t, c.User)
		}
		for range c.Config.GetMounts() {
			c.Mounts = append(c.Mounts, Mount{Source: "/s", Shared: flags&128 != 0})
		}
		for _, v := range ImageVolumes(c.Image, c.Config) {
			c.Volumes = append(c.Volumes, Volume{v, "/v"})
		}
		_, _, _ = ForPod(h, p)
		_, _ = PodSeccompPath(p.Config)
		_, _ = ContainerSeccompPath(c.Config)
		_, _ = signals.Stop(c.Config, c.Image.Config.StopSignal)
		s, _, err := ForContainer(h, p, c)
		if err != nil {
			return
		}
		checkPromises(t, c, s)
		if _, err := execProcess(s, []string{"x"}, true); err != nil && !strings.Contains(err.Error(), "envs") {
			t.Error(err)
		}
	})
}

func checkUserPromises(t *testing.T, u users.User) {
	if u.UID > check.MaxID || u.GID > check.MaxID || len(u.AdditionalGIDs) == 0 || u.AdditionalGIDs[0] != u.GID || !strings.HasPrefix(u.Home, "/") {
		t.Errorf("user %+v", u)
	}
}

func checkPromises(t *testing.T, c Container, s *specs.Spec) {
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
	for k := range s.Annotations {
		if !strings.HasPrefix(k, annotationPrefix) {
			t.Errorf("annotation %q", k)
		}
	}
	if len(c.Config.GetLinux().GetSecurityContext().GetCapabilities().GetAddAmbientCapabilities()) == 0 && len(s.Process.Capabilities.Ambient)+len(s.Process.Capabilities.Inheritable) > 0 {
		t.Error("inheritable capabilities that nobody asked for")
	}
	if !slices.Contains(s.Process.User.AdditionalGids, s.Process.User.GID) {
		t.Error("the primary group is missing")
	}
	if s.Process.OOMScoreAdj == nil || len(s.Process.Rlimits) == 0 || s.Hooks != nil {
		t.Error("something is left to inheritance, or hooks")
	}
	if s.Linux.Resources.Devices[0].Allow {
		t.Error("devices are not denied")
	}
	for _, m := range s.Mounts {
		if !strings.HasPrefix(m.Destination, "/") || m.Destination == "/" {
			t.Errorf("mount at %q", m.Destination)
		}
	}
	if !strings.HasPrefix(s.Process.Cwd, "/") || len(s.Process.Args) == 0 {
		t.Errorf("cwd %q, args %q", s.Process.Cwd, s.Process.Args)
	}
}
