package spec

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// aUserNamespace is what a kubelet sends.
func aUserNamespace() *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD,
		Uids: []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}, Gids: []*runtimeapi.IDMapping{{HostId: 196608, Length: 65536}}}
}

// inUserNamespace gives the pod one; the container, if any, says so too, as a kubelet's does.
func inUserNamespace(p *Pod, c *Container) {
	p.UserNS = "/run/cribox/pods/pod1/userns"
	p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = aUserNamespace()
	if c != nil {
		c.security().NamespaceOptions.UsernsOptions = aUserNamespace()
	}
}

func mappings() (uids, gids []*runtimeapi.IDMapping) {
	return aUserNamespace().Uids, aUserNamespace().Gids
}

func TestRefusesInUserNamespaces(t *testing.T) {
	mount := func(c *Container, change func(*runtimeapi.Mount)) {
		m := &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b"}
		m.UidMappings, m.GidMappings = mappings()
		change(m)
		c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{m}, []Mount{{Source: "/b"}}
	}
	for field, change := range map[string]func(*Pod, *Container){
		"userns_options.mode": func(_ *Pod, c *Container) {
			c.security().NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
		},
		"userns_options": func(_ *Pod, c *Container) { c.security().NamespaceOptions.UsernsOptions.Uids[0].HostId++ },
		"options: the mappings": func(_ *Pod, c *Container) {
			c.security().NamespaceOptions.UsernsOptions.Gids[0].Length--
		},
		"uidMappings":  func(_ *Pod, c *Container) { mount(c, func(m *runtimeapi.Mount) { m.GidMappings = nil }) },
		"gidMappings":  func(_ *Pod, c *Container) { mount(c, func(m *runtimeapi.Mount) { m.UidMappings = nil }) },
		"gidMappings:": func(_ *Pod, c *Container) { mount(c, func(m *runtimeapi.Mount) { m.GidMappings[0].Length = 0 }) },
		"mounts.uidMappings": func(p *Pod, c *Container) {
			mount(c, func(*runtimeapi.Mount) {})
			p.UserNS, p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = "", nil
			c.security().NamespaceOptions.UsernsOptions = nil
		},
		"host_path": func(_ *Pod, c *Container) {
			c.Devices = []Device{{ContainerPath: "/dev/x", Type: "c", Permissions: "rw"}}
		},
		"user":  func(_ *Pod, c *Container) { c.User.UID = 65536 },
		"group": func(_ *Pod, c *Container) { c.User.AdditionalGIDs = []uint32{0, 65536} },
	} {
		t.Run(field, func(t *testing.T) {
			p, c := aPod(), aContainer()
			inUserNamespace(&p, &c)
			change(&p, &c)
			_, _, err := ForContainer(aHost(), p, c)
			wantInvalid(t, err, field)
		})
	}
}

// TestUserNamespacePathIsRequired: without it a container would run as root of the host, or in a
// namespace of its own.
func TestUserNamespacePathIsRequired(t *testing.T) {
	for _, with := range []bool{true, false} {
		p, c := aPod(), aContainer()
		if inUserNamespace(&p, &c); with {
			p.UserNS = ""
		} else {
			p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions, c.security().NamespaceOptions.UsernsOptions = nil, nil
		}
		if _, _, err := ForContainer(aHost(), p, c); err == nil {
			t.Errorf("asked for: %v: a container's spec is made", with)
		}
		if _, _, err := ForPod(aHost(), p); err == nil {
			t.Errorf("asked for: %v: a pod's spec is made", with)
		}
	}
}

// TestSmallUserNamespace: nobody is given an id that is not mapped.
func TestSmallUserNamespace(t *testing.T) {
	p, c := aPod(), aContainer()
	inUserNamespace(&p, &c)
	c.User.AdditionalGIDs = nil
	for _, o := range []*runtimeapi.NamespaceOption{p.Config.Linux.SecurityContext.NamespaceOptions, c.security().NamespaceOptions} {
		o.UsernsOptions.Uids[0].Length, o.UsernsOptions.Gids[0].Length = 1, 5
	}
	if u := mustPod(t, aHost(), p).Process.User; u.UID != 0 || u.GID != 4 || u.AdditionalGids[0] != 4 {
		t.Errorf("pause is %v", u)
	}
	for _, m := range mustContainer(t, aHost(), p, c).Mounts {
		if m.Type == "devpts" && slices.Contains(m.Options, "gid=5") {
			t.Error("terminals belong to a group that is not there")
		}
	}
}

// TestFollowsThePod: a container that says nothing is in the pod's user namespace.
func TestFollowsThePod(t *testing.T) {
	p, c := aPod(), aContainer()
	inUserNamespace(&p, nil)
	want := specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.UserNS}
	if got := mustContainer(t, aHost(), p, c).Linux.Namespaces; !slices.Contains(got, want) {
		t.Errorf("namespaces %v", got)
	}
}
