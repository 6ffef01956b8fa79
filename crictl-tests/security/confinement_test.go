package security

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestAmbientCapabilities: asked for, a user who is not root keeps them over execve; added alone, only root has them.
func TestAmbientCapabilities(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	const none, bind = "0000000000000000", "0000000000000400"
	for _, row := range []struct {
		name string
		user int64
		caps *cri.Capability
		want map[string]string
	}{
		{"ambient, of a user", 1000, &cri.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}},
			map[string]string{"CapAmb": bind, "CapEff": bind, "CapPrm": bind, "CapInh": bind, "CapBnd": bind}},
		{"ambient, of root", 0, &cri.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}},
			map[string]string{"CapAmb": bind, "CapEff": bind, "CapPrm": bind, "CapInh": bind, "CapBnd": bind}},
		{"added only, of a user", 1000, &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}},
			map[string]string{"CapAmb": none, "CapEff": none, "CapPrm": none, "CapInh": none, "CapBnd": bind}},
		{"all dropped, of a user", 1000, &cri.Capability{DropCapabilities: []string{"ALL"}},
			map[string]string{"CapAmb": none, "CapEff": none, "CapPrm": none, "CapInh": none, "CapBnd": none}},
	} {
		c := p.Run(harness.Idle(), harness.AsUser(row.user), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities = row.caps }))
		for key, want := range row.want {
			for who, got := range map[string]string{"the container": statusOf(t, c.PID(), key), "an exec": statusLine(c.Exec("cat", "/proc/self/status"), key)} {
				if got != want {
					t.Errorf("%s: %s of %s is %s, want %s", row.name, key, who, got, want)
				}
			}
		}
	}
}

// statusLine returns the value of a line of a /proc/PID/status.
func statusLine(status, key string) string {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestLocalhostSeccomp: the profile that a file holds is the one that is in force, for an exec too, and is read when the container is made.
func TestLocalhostSeccomp(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	file := filepath.Join(d.Dir, "no-mkdir.json")
	d.Must(os.WriteFile(file, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600))
	p := d.RunPod()
	made := p.Create(harness.Shell("mkdir /x || echo refused; grep Seccomp: /proc/self/status; exec sleep 1d"), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = harness.Localhost(file) }))
	d.Must(os.Remove(file))
	made.Start()
	made.WaitLog("refused")
	made.WaitLog("Seccomp:\t2")
	if r := made.MayFail("mkdir", "/y"); r.Code == 0 || !strings.Contains(r.Stderr, "not permitted") {
		t.Errorf("mkdir by an exec: %+v", r)
	}
	other := p.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = nil }))
	other.Exec("mkdir", "/x")
	if got := statusOf(t, other.PID(), "Seccomp"); got != "0" {
		t.Errorf("no profile was asked for, and Seccomp is %s", got)
	}
}

// TestMissingProfiles: a profile that this machine cannot apply is refused by name, for a pod and for a container, and a label means
// nothing where there is no SELinux; nothing is left.
func TestMissingProfiles(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	p := d.RunPod()
	before := d.Ledger()
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		for _, profile := range []*cri.SecurityProfile{{ProfileType: cri.SecurityProfile_RuntimeDefault}, {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "mine"}} {
			_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.Apparmor = profile })))
			harness.WantCode(t, err, codes.FailedPrecondition, "security_context.apparmor", "no AppArmor")
			_, err = d.TryPod(d.PodConfig(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Apparmor = profile }))
			harness.WantCode(t, err, codes.FailedPrecondition, "security_context.apparmor", "no AppArmor")
		}
		c := p.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
			s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined} // which is what there is
		}))
		c.Exec("true")
		c.Remove()
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		// A pod with a label runs as any other: every pod of Kubernetes' conformance that tries an emptyDir has one.
		options := &cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"}
		labelled := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = options })
		c := labelled.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions = options }))
		c.Exec("true")
		labelled.Remove()
	}
	d.WantFlat(before)
}
