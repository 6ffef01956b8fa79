package crictltests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSEC24Status: the node's Status names a handler whose runc is known to let containers out; the node stays ready.
func TestSEC24Status(t *testing.T) {
	t.Parallel()
	old := filepath.Join(t.TempDir(), "runc")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = features ] || exec %[1]s \"$@\"\n"+
		"%[1]s features | sed 's/\\(runc.version\": \"\\)[^\"]*/\\11.2.7/'\n", binary("runc"))
	if err := writeProgram(old, script); err != nil {
		t.Fatal(err)
	}
	if c := newDaemon(t).conditions(); !c["RuntimeHasNoKnownFlaws"].GetStatus() {
		t.Errorf("with this runc: %v", c)
	}
	c := newDaemon(t, withConfig(fmt.Sprintf("[runtimes.old]\npath = %q\n", old))).conditions()
	if flaws := c["RuntimeHasNoKnownFlaws"]; flaws.GetStatus() || !strings.Contains(flaws.GetMessage(), "runtime old is runc 1.2.7") || !strings.Contains(flaws.GetMessage(), "CVE-2025-31133") {
		t.Errorf("with an old runc: %v", flaws)
	}
	if !c[cri.RuntimeReady].GetStatus() {
		t.Errorf("it is not ready: %v", c)
	}
}

func (d *daemon) conditions() map[string]*cri.RuntimeCondition {
	d.Helper()
	r, err := d.runtime.Status(context.Background(), &cri.StatusRequest{})
	d.must(err)
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
func (d *daemon) wantSwapped(path string) {
	d.Helper()
	seen := map[os.FileMode]bool{}
	eventually(d, path+" to be swapped", func() error {
		if info, err := os.Lstat(path); err == nil {
			seen[info.Mode().Type()] = true
		}
		return unless(seen[os.ModeDir] && seen[os.ModeSymlink], "it was %v", seen)
	})
}

// TestSEC25Race: a sibling swaps the place of a mount, in a volume of both, for a link that leads out, while containers start.
func TestSEC25Race(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	host := d.canary()
	vol := filepath.Join(d.dir, "vol")
	d.must(os.Mkdir(vol, 0o777))
	volume := &cri.Mount{HostPath: vol, ContainerPath: "/vol"}
	p := d.runPod()
	sibling := p.run(shell(swapped("x", host.up(""))), with(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{volume} }))
	sibling.waitLog("begun")
	source := filepath.Join(d.dir, "source")
	d.must(os.Mkdir(source, 0o755))
	for range starts {
		c := p.create(shell("touch /vol/x/in/mark; sleep 1d"), with(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{volume, {HostPath: source, ContainerPath: "/vol/x/in"}}
		}))
		if err := c.tryStart(); err != nil {
			t.Logf("refused, as it may be: %v", err)
		}
		host.wantUntouched("a place that is swapped")
		c.remove()
	}
	d.wantSwapped(filepath.Join(vol, "x"))
}

// TestSEC24Race: a sibling swaps a masked path, in a volume of both, for a link into /proc/sys, while containers start.
func TestSEC24Race(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	host := d.canary()
	const corePattern = "/proc/sys/kernel/core_pattern"
	const rewrite = "read -r now < " + corePattern + " && echo \"$now\" > " + corePattern // harmless, should it work
	vol := filepath.Join(d.dir, "vol")
	d.must(os.Mkdir(vol, 0o777))
	volume := func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: vol, ContainerPath: "/vol"}} }
	p := d.runPod()
	for name, to := range map[string]string{"x": host.up(""), "y": "/proc/sys/kernel"} {
		p.run(shell(swapped(name, to)+" # "+name), with(volume)).waitLog("begun")
	}
	for range starts {
		c := p.create(idle(), with(volume), secured(func(s *cri.LinuxContainerSecurityContext) {
			s.MaskedPaths = append([]string{"/vol/x/secret", "/vol/x", "/vol/y/core_pattern", "/vol/y"}, s.MaskedPaths...)
			s.ReadonlyPaths = append([]string{"/vol/x/folder", "/vol/y"}, s.ReadonlyPaths...)
		}))
		if err := c.tryStart(); err != nil {
			t.Logf("refused, as it may be: %v", err)
		} else if got := c.mayFail("sh", "-c", rewrite); got.code == 0 {
			t.Error("a container that has lost a race may write the node's core_pattern")
		}
		host.wantUntouched("a masked path that is swapped")
		c.remove()
	}
	d.wantSwapped(filepath.Join(vol, "x"))
	d.wantSwapped(filepath.Join(vol, "y"))
}
