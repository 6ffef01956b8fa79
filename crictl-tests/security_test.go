package crictltests

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// The tests named TestSECnn are the rows of docs/security.md, which security_table_test.go holds to them.

// canary is a folder of the host at which hostile requests and images aim. Whatever they do, it has to stay as it is.
type canary struct {
	*daemon
	dir    string
	before map[string]string
}

const canarySecret = "this is the host's own"

// canary makes the folder, with a file for each name that something in a container's root might be called.
func (d *daemon) canary() *canary {
	d.Helper()
	c := &canary{daemon: d, dir: filepath.Join(d.dir, "host")}
	d.must(os.MkdirAll(filepath.Join(c.dir, "folder"), 0o755))
	for _, name := range []string{"secret", "ptmx", "hosts", "hostname", "resolv.conf", "mtab", "folder/secret"} {
		d.must(os.WriteFile(c.path(name), []byte(canarySecret+"\n"), 0o640))
	}
	c.before = snapshot(d, c.dir)
	return c
}

func (c *canary) path(name string) string { return filepath.Join(c.dir, name) }

// up is the same path by way of more ".." than any root is deep.
func (c *canary) up(name string) string { return strings.Repeat("../", 40) + c.path(name)[1:] }

// wantUntouched compares names, content, mode, owner, inode and links of all there is.
func (c *canary) wantUntouched(what string) {
	c.Helper()
	after := snapshot(c, c.dir)
	for path, was := range c.before {
		if after[path] != was {
			c.Errorf("%s: %s was %s, is %s", what, path, was, after[path])
		}
	}
	for path := range after {
		if _, ok := c.before[path]; !ok {
			c.Errorf("%s: %s appeared on the host", what, path)
		}
	}
	c.before = after // one complaint for each deed
}

func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all[path] = fingerprint(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func fingerprint(t testing.TB, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatalf("no stat of %s", path)
	}
	print := fmt.Sprintf("mode %s owner %d:%d inode %d", info.Mode(), s.Uid, s.Gid, s.Ino)
	if info.Mode().IsRegular() {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		print += fmt.Sprintf(" links %d sha256 %s", s.Nlink, hex.EncodeToString(sum[:8]))
	}
	return print
}

// hostile pulls an image of busybox, the layers and the configuration, or ends the test.
func (d *daemon) hostile(name string, config v1.Config, layers ...[]fixture.Entry) string {
	d.Helper()
	img, err := fixture.Custom(config, layers...)
	d.must(err)
	id, err := d.tryHostile(name, img)
	d.must(err)
	return id
}

func (d *daemon) tryHostile(name string, img fixture.Image) (string, error) {
	d.Helper()
	d.must(d.registry().Add(name, img))
	return d.tryPull(d.ref(name), nil)
}

func ofImage(id string) containerOption {
	return func(c *cri.ContainerConfig) { c.Image = &cri.ImageSpec{Image: id, UserSpecifiedImage: id} }
}

func secured(change func(*cri.LinuxContainerSecurityContext)) containerOption {
	return func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func asUser(uid int64) containerOption {
	return secured(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: uid} })
}

// output is what a container of these options prints before it ends.
func (p *pod) output(options ...containerOption) string {
	p.Helper()
	c := p.run(options...)
	c.waitExit()
	return text(c.finalLog(), "stdout")
}

// resident is the most memory that the daemon has ever had at once since forgetPeak, in bytes.
func (d *daemon) resident(field string) int64 {
	d.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.process.pid()))
	d.must(err)
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, field+":\t%d kB", &kib); err == nil {
			return kib << 10
		}
	}
	d.Fatalf("no %s in the status of the daemon", field)
	return 0
}

// peakOf runs do and returns by how many bytes the daemon's memory grew at most meanwhile.
func (d *daemon) peakOf(do func()) int64 {
	d.Helper()
	d.must(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.process.pid()), []byte("5"), 0)) // the peak begins again
	before := d.resident("VmRSS")
	do()
	return d.resident("VmHWM") - before
}
