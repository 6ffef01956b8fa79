package security

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestSEC24Status: the node's Status names a handler whose runc is known to let containers out; the node stays ready.
func TestSEC24Status(t *testing.T) {
	t.Parallel()
	old := filepath.Join(t.TempDir(), "runc")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = features ] || exec %[1]s \"$@\"\n"+
		"%[1]s features | sed 's/\\(runc.version\": \"\\)[^\"]*/\\11.2.7/'\n", harness.Binary("runc"))
	if err := harness.WriteProgram(old, script); err != nil {
		t.Fatal(err)
	}
	if c := conditions(harness.NewDaemon(t)); !c["RuntimeHasNoKnownFlaws"].GetStatus() {
		t.Errorf("with this runc: %v", c)
	}
	c := conditions(harness.NewDaemon(t, harness.WithConfig(fmt.Sprintf("[runtimes.old]\npath = %q\n", old))))
	if flaws := c["RuntimeHasNoKnownFlaws"]; flaws.GetStatus() || !strings.Contains(flaws.GetMessage(), "runtime old is runc 1.2.7") || !strings.Contains(flaws.GetMessage(), "CVE-2025-31133") {
		t.Errorf("with an old runc: %v", flaws)
	}
	if !c[cri.RuntimeReady].GetStatus() {
		t.Errorf("it is not ready: %v", c)
	}
}

func conditions(d *harness.Daemon) map[string]*cri.RuntimeCondition {
	d.Helper()
	r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
	d.Must(err)
	all := map[string]*cri.RuntimeCondition{}
	for _, c := range r.Status.Conditions {
		all[c.Type] = c
	}
	return all
}

// starts is how many containers a race is run with: each one meets its sibling at another moment.
const starts = 12

// swapped is a script that makes a name in a volume a folder, a link and nothing in turns, without end, and tells when it has begun.
func swapped(name, to string) string {
	return fmt.Sprintf("echo begun; while :; do mkdir /vol/%[1]s; rm -rf /vol/%[1]s; ln -s %[2]s /vol/%[1]s; rm -rf /vol/%[1]s; done 2>/dev/null", name, to)
}

// wantSwapped waits until the name has been both: a sibling that got stuck would prove nothing.
func wantSwapped(d *harness.Daemon, path string) {
	d.Helper()
	seen := map[os.FileMode]bool{}
	harness.Eventually(d, path+" to be swapped", func() error {
		if info, err := os.Lstat(path); err == nil {
			seen[info.Mode().Type()] = true
		}
		return harness.Unless(seen[os.ModeDir] && seen[os.ModeSymlink], "it was %v", seen)
	})
}

// TestSEC25Race: a sibling swaps the place of a mount, in a volume of both, for a link that leads out, while containers start.
func TestSEC25Race(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	host := plantCanary(d)
	vol := filepath.Join(d.Dir, "vol")
	d.Must(os.Mkdir(vol, 0o777))
	volume := &cri.Mount{HostPath: vol, ContainerPath: "/vol"}
	p := d.RunPod()
	sibling := p.Run(harness.Shell(swapped("x", host.up(""))), harness.With(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{volume} }))
	sibling.WaitLog("begun")
	source := filepath.Join(d.Dir, "source")
	d.Must(os.Mkdir(source, 0o755))
	for range starts {
		c := p.Create(harness.Shell("touch /vol/x/in/mark; sleep 1d"), harness.With(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{volume, {HostPath: source, ContainerPath: "/vol/x/in"}}
		}))
		if err := c.TryStart(); err != nil {
			t.Logf("refused, as it may be: %v", err)
		}
		host.wantUntouched("a place that is swapped")
		c.Remove()
	}
	wantSwapped(d, filepath.Join(vol, "x"))
}

// TestSEC24Race: a sibling swaps a masked path, in a volume of both, for a link into /proc/sys, while containers start.
func TestSEC24Race(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	host := plantCanary(d)
	const corePattern = "/proc/sys/kernel/core_pattern"
	const rewrite = "read -r now < " + corePattern + " && echo \"$now\" > " + corePattern // harmless, should it work
	vol := filepath.Join(d.Dir, "vol")
	d.Must(os.Mkdir(vol, 0o777))
	volume := func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: vol, ContainerPath: "/vol"}} }
	p := d.RunPod()
	for name, to := range map[string]string{"x": host.up(""), "y": "/proc/sys/kernel"} {
		p.Run(harness.Shell(swapped(name, to)+" # "+name), harness.With(volume)).WaitLog("begun")
	}
	for range starts {
		c := p.Create(harness.Idle(), harness.With(volume), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
			s.MaskedPaths = append([]string{"/vol/x/secret", "/vol/x", "/vol/y/core_pattern", "/vol/y"}, s.MaskedPaths...)
			s.ReadonlyPaths = append([]string{"/vol/x/folder", "/vol/y"}, s.ReadonlyPaths...)
		}))
		if err := c.TryStart(); err != nil {
			t.Logf("refused, as it may be: %v", err)
		} else if got := c.MayFail("sh", "-c", rewrite); got.Code == 0 {
			t.Error("a container that has lost a race may write the node's core_pattern")
		}
		host.wantUntouched("a masked path that is swapped")
		c.Remove()
	}
	wantSwapped(d, filepath.Join(vol, "x"))
	wantSwapped(d, filepath.Join(vol, "y"))
}
