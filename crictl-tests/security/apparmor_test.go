package security

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

const defaultProfile = "cribox-default (enforce)"

func withAppArmor(p *cri.SecurityProfile) harness.ContainerOption {
	return harness.With(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Apparmor = p })
}

// ownProfile is what a process in a container reads of itself.
var ownProfile = []string{"cat", "/proc/self/attr/current"}

// TestAppArmor: what names no profile has the default one, and so has what runs in it; after a restart, and after somebody has taken the
// profile away. It takes the profile from the whole machine, so nothing runs beside it.
func TestAppArmor(t *testing.T) {
	if lacks := harness.LacksAppArmor(); lacks != "" {
		t.Skip(lacks)
	}
	d := harness.NewDaemon(t)
	p := d.RunPod()
	if got := profileOf(t, p.PausePID()); got != defaultProfile {
		t.Errorf("pause is %s", got)
	}
	c := p.Run(harness.Idle())
	if got := profileOf(t, c.PID()); got != defaultProfile {
		t.Errorf("the container is %s", got)
	}
	d.Kill()
	d.Start()
	if got := strings.TrimSpace(c.Exec(ownProfile...)); got != defaultProfile {
		t.Errorf("a command in it is %s", got)
	}
	refused := c.Exec("sh", "-c", "echo 1 >/proc/sys/vm/drop_caches || head -c 1 /proc/kcore || mount -t tmpfs tmpfs /mnt || echo held")
	if strings.TrimSpace(refused) != "held" {
		t.Errorf("the default profile lets it: %s", refused)
	}

	for name, profile := range map[string]*cri.SecurityProfile{
		"default": {ProfileType: cri.SecurityProfile_RuntimeDefault}, "by name": {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "cribox-default"},
	} {
		if got := profileOf(t, p.Run(harness.Idle(), harness.Called(name), withAppArmor(profile)).PID()); got != defaultProfile {
			t.Errorf("%s: %s", name, got)
		}
	}
	old := p.Run(harness.Idle(), harness.Called("old"), harness.With(func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.ApparmorProfile = "unconfined" //nolint:staticcheck // older kubelets
	}))
	if got := profileOf(t, old.PID()); got != "unconfined" {
		t.Errorf("unconfined, as older kubelets ask: %s", got)
	}
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Called("missing"), withAppArmor(&cri.SecurityProfile{
		ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "nobody-has-this",
	})))
	harness.WantCode(t, err, codes.FailedPrecondition, "nobody-has-this", "not loaded")

	dropProfile(t)
	if got := profileOf(t, p.Run(harness.Idle(), harness.Called("again")).PID()); got != defaultProfile {
		t.Errorf("after somebody took the profile away: %s", got)
	}
}

// TestAppArmorPrivileged: a privileged container is not confined, and its pod's pause is.
func TestAppArmorPrivileged(t *testing.T) {
	t.Parallel()
	if lacks := harness.LacksAppArmor(); lacks != "" {
		t.Skip(lacks)
	}
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }))
	if got := profileOf(t, c.PID()); got != "unconfined" {
		t.Errorf("privileged: %s", got)
	}
	if got := strings.TrimSpace(c.Exec(ownProfile...)); got != "unconfined" {
		t.Errorf("a command in it: %s", got)
	}
	if got := profileOf(t, p.PausePID()); got != defaultProfile {
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
