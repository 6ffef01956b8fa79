package crictltests

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// TestLedgerSees is the test of the ledger: each thing left behind must show, by its kind.
func TestLedgerSees(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.mayLeak = true
	d.pulled(busybox)
	before := d.ledger()
	p := d.runPod(func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{HostPort: int32(freePort(t)), ContainerPort: 80}}
	})
	p.run(idle())
	diff := d.diff(before, d.ledger())
	for _, kind := range []string{
		ledger.Mounts, ledger.Netns, ledger.Links, ledger.Leases, ledger.Rules, ledger.Cgroups, ledger.Processes, ledger.Fds, ledger.Files,
	} {
		if !strings.Contains(diff, kind+": ") {
			t.Errorf("a pod runs, and the ledger sees no difference in %s:\n%s", kind, diff)
		}
	}
	p.remove()
	d.wantFlat(before)

	left := filepath.Join(d.state, "left-behind")
	for kind, leave := range map[string]struct{ make, take func() error }{
		ledger.Files:   {func() error { return os.WriteFile(left, nil, 0o600) }, func() error { return os.Remove(left) }},
		ledger.Mounts:  {func() error { return bind(d.dir) }, func() error { return unix.Unmount(d.dir, 0) }},
		ledger.Netns:   {func() error { return os.WriteFile(netnsOf(d), nil, 0o600) }, func() error { return os.Remove(netnsOf(d)) }},
		ledger.Cgroups: {func() error { return os.Mkdir(cgroupOf(t, d), 0o755) }, func() error { return os.Remove(cgroupOf(t, d)) }},
	} {
		d.must(leave.make())
		if diff := d.diff(before, d.ledger()); !strings.Contains(diff, kind+": ") {
			t.Errorf("the ledger does not see what was left in %s: %q", kind, diff)
		}
		d.must(leave.take())
	}
	d.wantFlat(before)
	d.mayLeak = false
}

func bind(dir string) error { return unix.Mount(dir, dir, "", unix.MS_BIND, "") }

func netnsOf(d *daemon) string { return filepath.Join("/run/netns", "cribox-"+d.instance()+"-left") }

func cgroupOf(t *testing.T, d *daemon) string {
	return filepath.Join(hierarchies(t)[0], "cribox-"+d.instance()+"-left")
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
	d := newDaemon(t)
	round := func() {
		p := d.runPod()
		c := p.run(shell("echo x; exec sleep 1d"))
		c.exec("true")
		failed := p.create(running("/no/such/program"))
		if err := failed.tryStart(); err == nil {
			t.Error("a program that does not exist was started")
		}
		_, _ = c.tryExec(1, "sleep", "77")
		d.must(c.reopen())
		c.stop(0)
		p.stop()
		p.remove()
	}
	round()
	before, goroutines := d.ledger(), d.goroutines()
	for range 5 {
		round()
	}
	d.wantFlat(before)
	if goroutines == 0 {
		return // the daemon does not tell
	}
	eventually(t, "as many goroutines as before", func() error {
		now := d.goroutines()
		return unless(now <= goroutines+3, "there are %d, there were %d", now, goroutines) // a few belong to the connection
	})
}

func (d *daemon) goroutines() (n int) {
	d.Helper()
	r, err := d.runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.must(err)
	for _, digit := range r.Info["goroutines"] {
		if digit < '0' || digit > '9' {
			return 0
		}
		n = n*10 + int(digit-'0')
	}
	return n
}
