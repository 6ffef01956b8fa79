package crictltests

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultProfile = "cribox-default (enforce)"

func withAppArmor(p *cri.SecurityProfile) containerOption {
	return with(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Apparmor = p })
}

// ownProfile is what a process in a container reads of itself.
var ownProfile = []string{"cat", "/proc/self/attr/current"}

// TestAppArmor: what names no profile has the default one, and so has what runs in it; after a restart, and after somebody has taken the
// profile away. It takes the profile from the whole machine, so nothing runs beside it.
func TestAppArmor(t *testing.T) {
	if lacks := lacksAppArmor(); lacks != "" {
		t.Skip(lacks)
	}
	d := newDaemon(t)
	p := d.runPod()
	if got := profileOf(t, p.pausePID()); got != defaultProfile {
		t.Errorf("pause is %s", got)
	}
	c := p.run(idle())
	if got := profileOf(t, c.pid()); got != defaultProfile {
		t.Errorf("the container is %s", got)
	}
	d.kill()
	d.start()
	if got := strings.TrimSpace(c.exec(ownProfile...)); got != defaultProfile {
		t.Errorf("a command in it is %s", got)
	}
	refused := c.exec("sh", "-c", "echo 1 >/proc/sys/vm/drop_caches || head -c 1 /proc/kcore || mount -t tmpfs tmpfs /mnt || echo held")
	if strings.TrimSpace(refused) != "held" {
		t.Errorf("the default profile lets it: %s", refused)
	}

	for name, profile := range map[string]*cri.SecurityProfile{
		"default": {ProfileType: cri.SecurityProfile_RuntimeDefault}, "by name": {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "cribox-default"},
	} {
		if got := profileOf(t, p.run(idle(), called(name), withAppArmor(profile)).pid()); got != defaultProfile {
			t.Errorf("%s: %s", name, got)
		}
	}
	old := p.run(idle(), called("old"), with(func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.ApparmorProfile = "unconfined" //nolint:staticcheck // older kubelets
	}))
	if got := profileOf(t, old.pid()); got != "unconfined" {
		t.Errorf("unconfined, as older kubelets ask: %s", got)
	}
	_, err := p.tryCreate(p.containerConfig(idle(), called("missing"), withAppArmor(&cri.SecurityProfile{
		ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "nobody-has-this",
	})))
	wantCode(t, err, codes.FailedPrecondition, "nobody-has-this", "not loaded")

	dropProfile(t)
	if got := profileOf(t, p.run(idle(), called("again")).pid()); got != defaultProfile {
		t.Errorf("after somebody took the profile away: %s", got)
	}
}

// TestAppArmorPrivileged: a privileged container is not confined, and its pod's pause is.
func TestAppArmorPrivileged(t *testing.T) {
	t.Parallel()
	if lacks := lacksAppArmor(); lacks != "" {
		t.Skip(lacks)
	}
	d := newDaemon(t)
	p := d.runPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.run(idle(), with(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }))
	if got := profileOf(t, c.pid()); got != "unconfined" {
		t.Errorf("privileged: %s", got)
	}
	if got := strings.TrimSpace(c.exec(ownProfile...)); got != "unconfined" {
		t.Errorf("a command in it: %s", got)
	}
	if got := profileOf(t, p.pausePID()); got != defaultProfile {
		t.Errorf("pause is %s", got)
	}
}

// profileOf says which profile a process of the host is in.
func profileOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func dropProfile(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("cribox-default"), 0o600); err != nil {
		t.Fatal(err)
	}
}
