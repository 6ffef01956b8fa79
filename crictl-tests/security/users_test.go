package security

import (
	"archive/tar"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestSEC01Numbers: a number is never a name, and one that does not fit into 31 bits is nobody.
func TestSEC01Numbers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	var passwd strings.Builder
	passwd.WriteString("root:x:0:0::/:/bin/sh\nfair:x:1000:1000::/:/bin/sh\n")
	users := []string{"4294967296", "4294967295", "2147483648", "18446744073709551616", "-1", "1e3", "0x0", "+0", " 0", "0:4294967296", "1000:-2", "svc3"}
	for _, u := range users[:4] {
		fmt.Fprintf(&passwd, "%s:x:0:0::/:/bin/sh\n", u)
	}
	// Names that are none of the trick, whose numbers are.
	passwd.WriteString("svc3:x::1000::/:/bin/sh\n")
	for i, uid := range []string{"4294967296", "2147483648", "-1"} {
		fmt.Fprintf(&passwd, "svc%d:x:%s:1000::/:/bin/sh\n", i, uid)
		fmt.Fprintf(&passwd, "grp%d:x:1000:%s::/:/bin/sh\n", i, uid)
		users = append(users, fmt.Sprintf("svc%d", i), fmt.Sprintf("grp%d", i))
	}
	files := harness.UserFiles(passwd.String(), "root:x:0:\n00:x:0:\n-1:x:0:\n4294967296:x:0:\n")
	for i, user := range users {
		id := d.Hostile(fmt.Sprintf("sec01:%d", i), v1.Config{User: user}, files)
		c, err := p.TryCreate(p.ContainerConfig(harness.OfImage(id), harness.Idle()))
		if err == nil {
			c.Start()
			t.Errorf("USER %q runs as %q, ImageStatus says uid %v, name %q", user, c.Exec("id"), d.ImageStatus(id).Uid, d.ImageStatus(id).Username)
			c.Remove()
			continue
		}
		harness.WantCode(t, err, codes.InvalidArgument)
	}
	for user, want := range map[string]string{"1000": "1000 1000", "fair": "1000 1000", "1000:0": "1000 0", "": "0 0", "00": "0 0", "fair:00": "1000 0"} {
		id := d.Hostile("sec01:good"+strings.ReplaceAll(user, ":", "-"), v1.Config{User: user}, files)
		if got := p.OutputOf(harness.OfImage(id), harness.Shell("echo $(id -u) $(id -g)")); got != want+"\n" {
			t.Errorf("USER %q runs as %q, want %q", user, got, want)
		}
	}
}

// TestSEC02PrimaryGroup: a file that its group may not read stays closed to a member, however the groups are asked for.
func TestSEC02PrimaryGroup(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	id := d.Hostile("sec02:1", v1.Config{}, append(
		harness.UserFiles("root:x:0:0::/:/bin/sh\nlow:x:1500:1600::/:/bin/sh\n", "root:x:0:\nlow:x:1600:\nextra:x:900:low\n"),
		fixture.Entry{Name: "denied", Mode: 0o707, GID: 1600, Data: []byte("not for group 1600\n")}))
	strict, merge := cri.SupplementalGroupsPolicy_Strict, cri.SupplementalGroupsPolicy_Merge
	for name, row := range map[string]struct {
		change func(*cri.LinuxContainerSecurityContext)
		extra  bool
	}{
		"by number": {func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1500} }, true},
		"by name":   {func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "low" }, true},
		"group of request": {func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1500}, &cri.Int64Value{Value: 1600}
		}, true},
		"groups of request": {func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = &cri.Int64Value{Value: 1500}, []int64{77}, merge
		}, true},
		"strict": {func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = &cri.Int64Value{Value: 1500}, []int64{77}, strict
		}, false},
	} {
		c := p.Run(harness.OfImage(id), harness.Idle(), harness.Secured(row.change))
		const look = "id -G; cat /denied 2>/dev/null || echo closed; grep ^Groups /proc/1/status"
		got := strings.Split(c.Exec("sh", "-c", look), "\n")
		for _, line := range []string{got[0], got[2]} { // of the exec, and of the container itself
			groups := strings.Fields(line)
			if !slices.Contains(groups, "1600") || slices.Contains(groups, "900") != row.extra {
				t.Errorf("%s: groups %q", name, line)
			}
		}
		if got[1] != "closed" {
			t.Errorf("%s: read %q", name, got[1])
		}
	}
}

// TestSEC03HomeNewline: no value of the request or the image becomes a line of a file that decides who is who.
func TestSEC03HomeNewline(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	const accounts = "root:x:0:0:root:/root:/bin/sh\n"
	evil := harness.UserFiles(accounts+"cr:x:1000:1000:a\rb:/r\rx::0:0::/:/bin/sh\nesc:x:1001:1001::/\x1b[2Jx:/bin/sh\nrel:x:1002:1002::r:/bin/sh\n", "root:x:0:\n")
	homes := []string{"/r\nx::0:0::/:/bin/sh", "/r\r\nx::0:0::/:/bin/sh", "/r:0:0:x", `/r\nx::0:0::/:/bin/sh`}
	for i, home := range homes {
		ids := map[string]string{
			"image":   d.Hostile(fmt.Sprintf("sec03:%d", i), v1.Config{Env: []string{"PATH=/bin", "HOME=" + home}}, evil),
			"request": d.Hostile("sec03:plain", v1.Config{}, evil),
		}
		for from, id := range ids {
			config := p.ContainerConfig(harness.OfImage(id), harness.Shell("cat /etc/passwd"), harness.AsUser(4321))
			if from == "request" {
				config.Envs = []*cri.KeyValue{{Key: "HOME", Value: []byte(home)}}
			}
			c, err := p.TryCreate(config)
			if err != nil {
				harness.WantCode(t, err, codes.InvalidArgument)
				continue
			}
			c.Start()
			c.WaitExit()
			if got := harness.TextOf(c.FinalLog(), "stdout"); got != string(evil[1].Data) {
				t.Errorf("HOME=%q of the %s: /etc/passwd is now\n%s", home, from, got)
			}
		}
	}
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "HOME", Value: []byte("/r\x00x")}}
	})))
	harness.WantCode(t, err, codes.InvalidArgument, "envs")
	// What an image's passwd says is a home becomes an environment of the container only when it is a plain path.
	for _, user := range []string{"cr", "esc", "rel"} {
		id := d.Hostile("sec03:"+user, v1.Config{User: user}, evil)
		if got := p.OutputOf(harness.OfImage(id), harness.Shell("echo $HOME")); got != "/\n" {
			t.Errorf("the home of %s is %q", user, got)
		}
	}
	for _, name := range []string{"a\nb", "a:b", "a\x00b"} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = name })))
		harness.WantCode(t, err, codes.InvalidArgument, "run_as_username")
	}
}

// TestSEC04UserFiles: what stands for passwd and group in an image is a file of sane size inside the image, or it is refused.
func TestSEC04UserFiles(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	host := plantCanary(d)
	d.Must(os.WriteFile(host.path("accounts"), []byte("planted:x:0:0::/:/bin/sh\n"), 0o600))
	host.before = snapshot(d, host.dir)
	line := func(size int) []byte { return []byte(strings.Repeat("x", size)) }
	many := strings.Repeat("grp:x:1234567:planted,other\n", 1<<20) // 28 MiB
	for name, entry := range map[string]fixture.Entry{
		"fifo":          {Type: tar.TypeFifo},
		"endless":       {Type: tar.TypeChar, Devmajor: 1, Devminor: 5},
		"one long line": {Data: line(11 << 20)},
		"many lines":    {Data: []byte(many)},
		"to a process":  {Type: tar.TypeSymlink, Link: "/proc/self/environ"},
		"to the host":   {Type: tar.TypeSymlink, Link: host.path("accounts")},
		"up and out":    {Type: tar.TypeSymlink, Link: host.up("accounts")},
		"folder":        {Type: tar.TypeDir},
	} {
		for _, file := range []string{"passwd", "group"} {
			e := entry
			e.Name = "etc/" + file
			id := d.Hostile("sec04:"+strings.ReplaceAll(name, " ", "-")+"-"+file, v1.Config{}, []fixture.Entry{e})
			link := e.Type == tar.TypeSymlink
			asked := harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 12345} })
			if link && file == "passwd" {
				asked = harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "planted" })
			}
			grown := d.PeakOf(func() {
				c, err := p.TryCreate(p.ContainerConfig(harness.OfImage(id), harness.Shell("id; cat /etc/"+file), asked))
				if err != nil {
					harness.WantCode(t, err, codes.InvalidArgument)
					return
				}
				if !link || file == "passwd" {
					t.Errorf("%s as %s was accepted", name, file)
				}
				c.Remove()
			})
			if grown > 32<<20 {
				t.Errorf("%s as %s: the daemon grew by %d MiB", name, file, grown>>20)
			}
		}
	}
	host.wantUntouched("user files")
}

// TestSEC05Ambient: no capability is there to be inherited, for nobody: root, user, exec, pause.
func TestSEC05Ambient(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	sets := func(status string) map[string]string {
		all := map[string]string{}
		for line := range strings.Lines(status) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(k, "Cap") {
				all[k] = strings.TrimSpace(v)
			}
		}
		return all
	}
	const none = "0000000000000000"
	check := func(who string, caps map[string]string) {
		t.Helper()
		if len(caps) != 5 || caps["CapInh"] != none || caps["CapAmb"] != none {
			t.Errorf("%s: %v", who, caps)
		}
	}
	for _, uid := range []int64{0, 1000} {
		c := p.Run(harness.Idle(), harness.AsUser(uid))
		exec := sets(c.Exec("cat", "/proc/self/status"))
		var own map[string]string
		harness.Eventually(t, fmt.Sprintf("the container of user %d to be executed, with what an exec in it has", uid), func() error {
			own = sets(harness.HostFile(t, fmt.Sprintf("/proc/%d/status", c.PID())))
			return harness.Unless(maps.Equal(own, exec), "it has %v, an exec %v", own, exec)
		})
		check(fmt.Sprintf("user %d", uid), own)
		check(fmt.Sprintf("an exec of user %d", uid), exec)
		if uid != 0 && own["CapEff"] != none {
			t.Errorf("user %d has capabilities: %v", uid, own)
		}
	}
	pauses := 0
	for _, process := range d.ProcessesOf(p.ID) {
		if len(process.Args) > 0 && strings.Contains(process.Args[0], "pause") {
			pauses++
			check("pause", sets(harness.HostFile(t, fmt.Sprintf("/proc/%d/status", process.Pid))))
		}
	}
	if pauses != 1 {
		t.Errorf("found %d pause processes", pauses)
	}
}

// TestSEC06NothingShared: containers of one image, made at the same time, do not see each other's environment.
func TestSEC06NothingShared(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	id := d.Pulled(harness.Busybox)
	var all sync.WaitGroup
	for n := range 16 {
		all.Go(func() {
			key, value := fmt.Sprintf("OWN_%d", n), fmt.Sprintf("value-%d", n)
			got := p.OutputOf(harness.OfImage(id), harness.Shell("env | grep ^OWN_"), harness.With(func(c *cri.ContainerConfig) {
				c.Envs = []*cri.KeyValue{{Key: key, Value: []byte(value)}}
			}))
			if got != key+"="+value+"\n" {
				t.Errorf("container %d has %q", n, got)
			}
		})
	}
	all.Wait()
}

// TestSEC07SameUserAgain: who an image runs as does not depend on whether it was here before.
func TestSEC07SameUserAgain(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, name := range []string{"config:uid", "config:name-group", "app:1"} {
		ref := d.Ref(name)
		var first string
		for round := range 3 {
			if round != 1 { // the second time without a pull
				_, err := d.TryPull(ref, nil)
				d.Must(err)
			}
			c := p.Run(harness.OfImage(ref), harness.Running("sh", "-c", "echo $(id)"))
			c.WaitExit()
			got := harness.TextOf(c.FinalLog(), "stdout")
			if first == "" {
				first = got
			}
			if got != first || strings.HasPrefix(got, "uid=0") {
				t.Errorf("%s, round %d: %q, the first time %q", name, round, got, first)
			}
			c.Remove()
		}
	}
}

// TestSEC08LocalhostProfile: a profile that cannot be had is an error and never no profile.
func TestSEC08LocalhostProfile(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	large, empty := filepath.Join(d.Dir, "large.json"), filepath.Join(d.Dir, "empty.json")
	d.Must(os.WriteFile(empty, nil, 0o600))
	d.Must(os.WriteFile(large, nil, 0o600))
	d.Must(os.Truncate(large, 100<<20))
	for _, ref := range []string{"", "../x", "/no/such/profile.json", d.Dir, large, empty, "/dev/zero", "/proc/self/fd/0", d.Dir + "/../" + filepath.Base(d.Dir) + "/empty.json"} {
		profile := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = profile })))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("container, profile %q: %v", ref, err)
		}
		_, err = d.TryPod(d.PodConfig(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Seccomp = profile }))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("pod, profile %q: %v", ref, err)
		}
	}
}
