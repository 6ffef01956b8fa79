package lifecycle

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
	"github.com/cribox/cribox/crictl-tests/ledger"
)

// TestLedgerSees is the test of the ledger: each thing left behind must show, by its kind.
func TestLedgerSees(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.MayLeak = true
	d.Pulled(harness.Busybox)
	before := d.Ledger()
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{HostPort: int32(harness.FreePort(t)), ContainerPort: 80}}
	})
	p.Run(harness.Idle())
	diff := d.Diff(before, d.Ledger())
	kinds := []string{
		ledger.Mounts, ledger.Netns, ledger.Links, ledger.Leases, ledger.Rules, ledger.Cgroups, ledger.Processes, ledger.Fds, ledger.Files,
	}
	if harness.SystemdRuns() {
		kinds = append(kinds, ledger.Units)
	}
	for _, kind := range kinds {
		if !strings.Contains(diff, kind+": ") {
			t.Errorf("a pod runs, and the ledger sees no difference in %s:\n%s", kind, diff)
		}
	}
	p.Remove()
	d.WantFlat(before)

	left := filepath.Join(d.State, "left-behind")
	rows := map[string]struct{ make, take func() error }{
		ledger.Files:   {func() error { return os.WriteFile(left, nil, 0o600) }, func() error { return os.Remove(left) }},
		ledger.Mounts:  {func() error { return bind(d.Dir) }, func() error { return unix.Unmount(d.Dir, 0) }},
		ledger.Netns:   {func() error { return os.WriteFile(netnsOf(d), nil, 0o600) }, func() error { return os.Remove(netnsOf(d)) }},
		ledger.Cgroups: {func() error { return os.Mkdir(cgroupOf(t, d), 0o755) }, func() error { return os.Remove(cgroupOf(t, d)) }},
	}
	if unit := "cribox-" + d.Instance() + "-left.service"; harness.SystemdRuns() {
		rows[ledger.Units] = struct{ make, take func() error }{
			exec.Command("systemd-run", "--quiet", "--remain-after-exit", "--unit", unit, "true").Run, exec.Command("systemctl", "stop", unit).Run,
		}
	}
	for kind, leave := range rows {
		d.Must(leave.make())
		if diff := d.Diff(before, d.Ledger()); !strings.Contains(diff, kind+": ") {
			t.Errorf("the ledger does not see what was left in %s: %q", kind, diff)
		}
		d.Must(leave.take())
	}
	d.WantFlat(before)
	d.MayLeak = false
}

func bind(dir string) error { return unix.Mount(dir, dir, "", unix.MS_BIND, "") }

func netnsOf(d *harness.Daemon) string {
	return filepath.Join("/run/netns", "cribox-"+d.Instance()+"-left")
}

func cgroupOf(t *testing.T, d *harness.Daemon) string {
	return filepath.Join(harness.Hierarchies(t)[0], "cribox-"+d.Instance()+"-left")
}

func TestDiffReads(t *testing.T) {
	before := ledger.Ledger{"mounts": {"a", "b", "b"}, "links": {"x"}}
	after := ledger.Ledger{"mounts": {"a", "b", "c"}, "links": {"x"}, "rules": {"r"}}
	want := "mounts: 3 before, 3 after\n  - b\n  + c\nrules: 0 before, 1 after\n  + r\n"
	if got := ledger.Diff(before, after); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := ledger.Diff(before, before); got != "" {
		t.Errorf("nothing changed, but: %s", got)
	}
}

// TestCyclesLeaveNothing: after the first round every further one leaves all counts as they are, descriptors and goroutines too.
func TestCyclesLeaveNothing(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	round := func() {
		p := d.RunPod()
		c := p.Run(harness.Shell("echo x; exec sleep 1d"))
		c.Exec("true")
		failed := p.Create(harness.Running("/no/such/program"))
		if err := failed.TryStart(); err == nil {
			t.Error("a program that does not exist was started")
		}
		_, _ = c.TryExec(1, "sleep", "77")
		d.Must(c.Reopen())
		c.Stop(0)
		p.Stop()
		p.Remove()
	}
	round()
	before, goroutines := d.Ledger(), d.Goroutines()
	for range 5 {
		round()
	}
	d.WantFlat(before)
	if goroutines == 0 {
		return // the daemon does not tell
	}
	harness.Eventually(t, "as many goroutines as before", func() error {
		now := d.Goroutines()
		return harness.Unless(now <= goroutines+3, "there are %d, there were %d", now, goroutines) // a few belong to the connection
	})
}
