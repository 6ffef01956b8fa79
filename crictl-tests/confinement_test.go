package crictltests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAmbientCapabilities: asked for, a user who is not root keeps them over execve; added alone, only root has them.
func TestAmbientCapabilities(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
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
		c := p.run(idle(), asUser(row.user), secured(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities = row.caps }))
		for key, want := range row.want {
			for who, got := range map[string]string{"the container": statusOf(t, c.pid(), key), "an exec": statusLine(c.exec("cat", "/proc/self/status"), key)} {
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
	d := newDaemon(t)
	file := filepath.Join(d.dir, "no-mkdir.json")
	d.must(os.WriteFile(file, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600))
	p := d.runPod()
	made := p.create(shell("mkdir /x || echo refused; grep Seccomp: /proc/self/status; exec sleep 1d"), secured(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = localhost(file) }))
	d.must(os.Remove(file))
	made.start()
	made.waitLog("refused")
	made.waitLog("Seccomp:\t2")
	if r := made.mayFail("mkdir", "/y"); r.code == 0 || !strings.Contains(r.stderr, "not permitted") {
		t.Errorf("mkdir by an exec: %+v", r)
	}
	other := p.run(idle(), secured(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = nil }))
	other.exec("mkdir", "/x")
	if got := statusOf(t, other.pid(), "Seccomp"); got != "0" {
		t.Errorf("no profile was asked for, and Seccomp is %s", got)
	}
}

// TestProfilesThatAreNotHere: a profile that this machine cannot apply is refused by name, for a pod and for a container, and a label means
// nothing where there is no SELinux; nothing is left.
func TestProfilesThatAreNotHere(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.pulled(busybox)
	p := d.runPod()
	before := d.ledger()
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		for _, profile := range []*cri.SecurityProfile{{ProfileType: cri.SecurityProfile_RuntimeDefault}, {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "mine"}} {
			_, err := p.tryCreate(p.containerConfig(idle(), secured(func(s *cri.LinuxContainerSecurityContext) { s.Apparmor = profile })))
			wantCode(t, err, codes.FailedPrecondition, "security_context.apparmor", "no AppArmor")
			_, err = d.tryPod(d.podConfig(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Apparmor = profile }))
			wantCode(t, err, codes.FailedPrecondition, "security_context.apparmor", "no AppArmor")
		}
		c := p.run(idle(), secured(func(s *cri.LinuxContainerSecurityContext) {
			s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined} // which is what there is
		}))
		c.exec("true")
		c.remove()
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		// A pod with a label runs as any other: every pod of Kubernetes' conformance that tries an emptyDir has one.
		options := &cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"}
		labelled := d.runPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = options })
		c := labelled.run(idle(), secured(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions = options }))
		c.exec("true")
		labelled.remove()
	}
	d.wantFlat(before)
}
