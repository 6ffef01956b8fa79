package spec

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/capability"
	"github.com/cribox/cribox/sandbox/spec/seccomp"
	"github.com/cribox/cribox/sandbox/spec/users"
)

func TestArgs(t *testing.T) {
	for _, r := range []struct{ entrypoint, cmd, command, args, want []string }{
		{[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{[]string{"e"}, []string{"c"}, nil, []string{"A"}, []string{"e", "A"}},
		{[]string{"e"}, []string{"c"}, []string{"C"}, nil, []string{"C"}},
		{[]string{"e"}, []string{"c"}, []string{"C"}, []string{"A", ""}, []string{"C", "A", ""}},
		{nil, []string{"c"}, nil, []string{"A"}, []string{"A"}},
		{nil, []string{"c", "d"}, nil, nil, []string{"c", "d"}},
	} {
		c := aContainer()
		c.Image.Config.Entrypoint, c.Image.Config.Cmd = r.entrypoint, r.cmd
		c.Config.Command, c.Config.Args = r.command, r.args
		if got := mustContainer(t, aHost(), aPod(), c).Process.Args; !slices.Equal(got, r.want) {
			t.Errorf("%+v became %q", r, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	c := aContainer()
	c.Image.Config.Env = []string{"A=image", "B=image", "BROKEN", "=x", "HOSTNAME=image", "A=again"}
	c.Config.Envs = []*runtimeapi.KeyValue{{Key: "B", Value: []byte("request")}, {Key: "C", Value: []byte("a=b")}, {Key: "C", Value: []byte("last")}}
	s, notes, err := ForContainer(aHost(), aPod(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=image", "HOME=/root", "A=again", "B=request", "C=last"}
	if !slices.Equal(s.Process.Env, want) {
		t.Errorf("got %q\nwant %q", s.Process.Env, want)
	}
	if len(notes) != 2 {
		t.Errorf("notes: %v", notes)
	}
}

// TestHomeIsAlwaysSet (SEC-03, 04): or the OCI runtime reads the image's passwd.
func TestHomeIsAlwaysSet(t *testing.T) {
	c := aContainer()
	c.User, c.Image.Config.Env = users.User{}, nil
	if env := mustContainer(t, aHost(), aPod(), c).Process.Env; !slices.Contains(env, "HOME=/") {
		t.Errorf("%q", env)
	}
	if env := mustPod(t, aHost(), aPod()).Process.Env; !slices.Contains(env, "HOME=/") {
		t.Errorf("%q", env)
	}
}

func TestClamps(t *testing.T) {
	h, c := aHost(), aContainer()
	h.OOMScoreAdjMin = 0
	h.RlimitHard = map[string]uint64{"RLIMIT_NOFILE": 20000, "RLIMIT_CORE": 0}
	h.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 50000, Hard: 60000}, {Type: "RLIMIT_NPROC", Soft: 5, Hard: 6}}
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -998}
	s, notes, err := ForContainer(h, aPod(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 20000, Hard: 20000}, {Type: "RLIMIT_NPROC", Soft: 5, Hard: 6}}
	if *s.Process.OOMScoreAdj != 0 || !reflect.DeepEqual(s.Process.Rlimits, want) {
		t.Errorf("oom %d, rlimits %v", *s.Process.OOMScoreAdj, s.Process.Rlimits)
	}
	text := ""
	for _, n := range notes {
		text += n.String() + "\n"
	}
	if len(notes) != 2 || !strings.Contains(text, "oom_score_adj -998 was raised to 0") {
		t.Errorf("notes: %s", text)
	}
	c.Config.Linux = nil
	if s := mustContainer(t, aHost(), aPod(), c); s.Process.OOMScoreAdj == nil || *s.Process.OOMScoreAdj != 0 {
		t.Error("the oom score adjustment is left to inheritance")
	}
}

func TestExecProcess(t *testing.T) {
	c := aContainer()
	s := mustContainer(t, aHost(), aPod(), c)
	for _, bad := range [][]string{nil, {""}, {"a\x00"}, {strings.Repeat("x", 3<<20)}} {
		_, err := execProcess(s, bad, false)
		wantInvalid(t, err, "")
	}
	_, err := execProcess(&specs.Spec{}, []string{"ls"}, false)
	wantInvalid(t, err, "")
	s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 1}
	for _, tty := range []bool{false, true} {
		cmd := []string{"ls", "-l", `<"\&'`}
		p, err := execProcess(s, cmd, tty)
		if err != nil || p.Terminal != tty || slices.Contains(p.Env, "TERM=xterm") != tty || !slices.Equal(p.Args, cmd) || p.ConsoleSize != nil {
			t.Fatalf("%+v, %v", p, err)
		}
		p.Args, p.Env, p.Terminal, p.ConsoleSize = s.Process.Args, s.Process.Env, true, s.Process.ConsoleSize
		if !reflect.DeepEqual(p, s.Process) {
			t.Errorf("an exec differs from its container:\n%+v\n%+v", p, s.Process)
		}
	}
}

// execProcess returns the process of a command in a container with this spec.
func execProcess(s *specs.Spec, cmd []string, tty bool) (*specs.Process, error) {
	encoded, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	e, err := NewExec(encoded)
	if err != nil {
		return nil, err
	}
	raw, err := e.Process(cmd, tty)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{}
	return p, json.Unmarshal(raw, p)
}

// BenchmarkExec measures what an exec costs of which the container's process is known.
func BenchmarkExec(b *testing.B) {
	s, _, err := ForContainer(aHost(), aPod(), aContainer())
	if err != nil {
		b.Fatal(err)
	}
	encoded, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	e, err := NewExec(encoded)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Process([]string{"cat", "/tmp/ready"}, false); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := capability.Known(40)
	without := func(list []string, drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(drop, s) })
	}
	var fourteen []string
	for _, name := range all {
		if slices.Contains(capability.Default, name) {
			fourteen = append(fourteen, name)
		}
	}
	type caps = runtimeapi.Capability
	for _, r := range []struct {
		name      string
		grantable []string
		caps      *caps
		want      []string
		ambient   []string
	}{
		{"default", nil, nil, fourteen, nil},
		{"add", nil, &caps{AddCapabilities: []string{"net_admin"}}, insert(fourteen, "CAP_NET_ADMIN"), nil},
		{"drop", nil, &caps{DropCapabilities: []string{"CHOWN"}}, without(fourteen, "CAP_CHOWN"), nil},
		{"drop wins", nil, &caps{AddCapabilities: []string{"KILL"}, DropCapabilities: []string{"KILL"}}, without(fourteen, "CAP_KILL"), nil},
		{"all", nil, &caps{AddCapabilities: []string{"all"}}, all, nil},
		{"all but", nil, &caps{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"sys_admin"}}, without(all, "CAP_SYS_ADMIN"), nil},
		{"none but", nil, &caps{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CHOWN"}}, []string{"CAP_CHOWN"}, nil},
		{"none", nil, &caps{DropCapabilities: []string{"ALL"}}, nil, nil},
		{"all of what there is", []string{"CAP_CHOWN", "CAP_KILL"}, &caps{AddCapabilities: []string{"ALL"}}, []string{"CAP_CHOWN", "CAP_KILL"}, nil},
		{"default of what there is", []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, nil, []string{"CAP_CHOWN"}, nil},
		{"ambient", nil, &caps{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}, []string{"CAP_NET_BIND_SERVICE"}, []string{"CAP_NET_BIND_SERVICE"}},
		{"ambient, dropped", nil, &caps{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"KILL"}}, without(fourteen, "CAP_KILL"), nil},
	} {
		t.Run(r.name, func(t *testing.T) {
			h, c := aHost(), aContainer()
			h.Grantable = r.grantable
			c.security().Capabilities = r.caps
			got := mustContainer(t, h, aPod(), c).Process.Capabilities
			for set, list := range map[string][]string{"bounding": got.Bounding, "effective": got.Effective, "permitted": got.Permitted} {
				if !slices.Equal(list, r.want) {
					t.Errorf("%s\n got %v\nwant %v", set, list, r.want)
				}
			}
			if !slices.Equal(got.Ambient, r.ambient) || !slices.Equal(got.Inheritable, r.ambient) {
				t.Errorf("ambient %v, inheritable %v", got.Ambient, got.Inheritable)
			}
		})
	}
	if n := len(capability.Known(-5)) + len(capability.Known(0)) + len(capability.Known(999)); n != 0+1+41 {
		t.Errorf("%d capabilities", n)
	}
}

func insert(list []string, name string) []string {
	var out []string
	for _, n := range capability.Known(999) {
		if n == name || slices.Contains(list, n) {
			out = append(out, n)
		}
	}
	return out
}

func TestSeccomp(t *testing.T) {
	const own = `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`
	local := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/seccomp/p.json"}
	for _, r := range []struct {
		name       string
		profile    *runtimeapi.SecurityProfile
		deprecated string
		want       int // system calls in the profile; 0 none
	}{
		{"unset", nil, "", 0},
		{"unconfined", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, "runtime/default", 0},
		{"default", &runtimeapi.SecurityProfile{}, "", 300},
		{"deprecated default", nil, "runtime/default", 300},
		{"deprecated unconfined", nil, "unconfined", 0},
		{"localhost", local, "unconfined", 1},
		{"deprecated localhost", nil, "localhost//seccomp/p.json", 1},
	} {
		t.Run(r.name, func(t *testing.T) {
			c := aContainer()
			c.security().Seccomp, c.security().SeccompProfilePath = r.profile, r.deprecated //nolint:staticcheck // older kubelets
			path, err := ContainerSeccompPath(c.Config)
			if err != nil || (path == "/seccomp/p.json") != (r.want == 1) {
				t.Errorf("path %q, %v", path, err)
			}
			c.SeccompProfile = []byte(own)
			got := 0
			if s := mustContainer(t, aHost(), aPod(), c).Linux.Seccomp; s != nil {
				for _, call := range s.Syscalls {
					got += len(call.Names)
				}
			}
			if got < r.want || (r.want < 300 && got != r.want) {
				t.Errorf("%d system calls, want %d", got, r.want)
			}
		})
	}
	// SEC-08: what was read is no profile.
	for _, file := range []string{"", " ", "{}", "null", "[]", `"x"`, own + own, own + " x", `{"defaultAction":"ALLOW"}`, `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"]}]}`, own + strings.Repeat(" ", seccomp.MaxFile)} {
		c := aContainer()
		c.security().Seccomp, c.SeccompProfile = local, []byte(file)
		_, _, err := ForContainer(aHost(), aPod(), c)
		wantInvalid(t, err, "localhost_ref")
		p := aPod()
		p.Config.Linux.SecurityContext.Seccomp, p.SeccompProfile = local, []byte(file)
		_, _, err = ForPod(aHost(), p)
		wantInvalid(t, err, "localhost_ref")
	}
}

func TestSeccompArchitectures(t *testing.T) {
	c := aContainer()
	c.security().Seccomp = &runtimeapi.SecurityProfile{}
	for _, x32 := range []bool{true, false} {
		for _, compat := range []bool{true, false} {
			h := aHost()
			h.X32, h.Compat32 = x32, compat
			got := mustContainer(t, h, aPod(), c).Linux.Seccomp.Architectures
			if slices.Contains(got, specs.ArchX32) && !x32 {
				t.Errorf("x32 on a kernel without it: %v", got)
			}
			if (slices.Contains(got, specs.ArchX86) || slices.Contains(got, specs.ArchARM)) != compat {
				t.Errorf("32-bit %v: %v", compat, got)
			}
		}
	}
}

func TestAppArmorAndSELinux(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	h.AppArmor, h.AppArmorProfile, h.SELinux = true, "cribox-default", true
	p.ProcessLabel, p.MountLabel, c.ProcessLabel, c.MountLabel = "pl", "ml", "cl", "cm"
	for want, profile := range map[string]*runtimeapi.SecurityProfile{
		"cribox-default": nil, "unconfined": {ProfileType: runtimeapi.SecurityProfile_Unconfined}, "mine": {ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "mine"},
		"prefixed": {ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "localhost/prefixed"},
	} {
		c.security().Apparmor = profile
		s := mustContainer(t, h, p, c)
		if s.Process.ApparmorProfile != want || s.Process.SelinuxLabel != "cl" || s.Linux.MountLabel != "cm" {
			t.Errorf("want %s: %q, %q, %q", want, s.Process.ApparmorProfile, s.Process.SelinuxLabel, s.Linux.MountLabel)
		}
	}
	if s := mustPod(t, h, p); s.Process.ApparmorProfile != "cribox-default" || s.Process.SelinuxLabel != "pl" || s.Linux.MountLabel != "ml" {
		t.Errorf("pod: %q, %q", s.Process.ApparmorProfile, s.Process.SelinuxLabel)
	}
	p.Config.Linux.SecurityContext.Privileged, c.security().Privileged, c.security().Apparmor = true, true, nil
	if s := mustContainer(t, h, p, c); s.Process.ApparmorProfile != "unconfined" || s.Process.SelinuxLabel != "" {
		t.Errorf("privileged: %q, %q", s.Process.ApparmorProfile, s.Process.SelinuxLabel)
	}
	c.security().Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	h = aHost()
	mustContainer(t, h, p, c) // unconfined can be had everywhere
}

// TestLabelsWithoutSELinux: what is asked of SELinux means nothing where there is none.
func TestLabelsWithoutSELinux(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	options := &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0"}
	p.Config.Linux.SecurityContext.SelinuxOptions, c.security().SelinuxOptions = options, options
	for what, s := range map[string]*specs.Spec{"pod": mustPod(t, h, p), "container": mustContainer(t, h, p, c)} {
		if s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "" {
			t.Errorf("%s: %q, %q", what, s.Process.SelinuxLabel, s.Linux.MountLabel)
		}
	}

	// The kubelet wants every volume relabelled, also where the policy has no labels for containers.
	h, p, c = aHost(), aPod(), aContainer()
	h.SELinux = true
	ofMount(&runtimeapi.Mount{HostPath: "/a", SelinuxRelabel: true})(&h, &p, &c)
	if s := mustContainer(t, h, p, c); s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "" {
		t.Errorf("in a pod without a label: %q, %q", s.Process.SelinuxLabel, s.Linux.MountLabel)
	}
}

// TestPrimaryGroupStays (SEC-02): whatever the caller hands over.
func TestPrimaryGroupStays(t *testing.T) {
	for _, additional := range [][]uint32{nil, {5}, {5, 7, 5}, {7}} {
		c := aContainer()
		c.User = users.User{UID: 1, GID: 7, AdditionalGIDs: additional}
		got := mustContainer(t, aHost(), aPod(), c).Process.User.AdditionalGids
		if got[0] != 7 || len(got) > 2 {
			t.Errorf("%v became %v", additional, got)
		}
	}
}
