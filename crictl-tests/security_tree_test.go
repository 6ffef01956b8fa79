package crictltests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// nested is deeper than fewDescriptors allows with a descriptor a folder, and than a path can say.
const nested = 2500

func (d *daemon) trash() string { return filepath.Join(d.root, "containers", ".trash") }

// waitNoTrash waits until all that was removed is deleted.
func (d *daemon) waitNoTrash() {
	d.Helper()
	eventually(d, "what was removed to be deleted", func() error {
		entries, err := os.ReadDir(d.trash())
		if err != nil {
			return err
		}
		return unless(len(entries) == 0, "%d things are in the trash", len(entries))
	})
}

// fewDescriptors takes the daemon all but so many descriptors.
func (d *daemon) fewDescriptors(n uint64) {
	d.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.process.pid()))
	d.must(err)
	most := unix.Rlimit{Cur: uint64(len(open)) + n, Max: uint64(len(open)) + n}
	d.must(unix.Prlimit(d.process.pid(), unix.RLIMIT_NOFILE, &most, nil))
}

// TestSEC71NestedFolders: however deep the folders are that a container has made, in its writable layer, in a VOLUME of its image or in
// /dev/shm, container and pod can be removed, with few descriptors.
func TestSEC71NestedFolders(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(d.tool("nest", "/", fmt.Sprint(nested)))
	shm := p.run(d.tool("nest", "/dev/shm", fmt.Sprint(nested)))
	again := p.run(d.tool("nest", "/", fmt.Sprint(nested)))
	for _, c := range []*container{c, shm, again} {
		if s := c.waitExit(); s.ExitCode != 0 {
			t.Fatalf("the folders are not made: %v", s)
		}
	}
	d.fewDescriptors(200)
	c.remove()
	if _, err := os.Lstat(filepath.Join(d.root, "containers", c.id)); !os.IsNotExist(err) {
		t.Errorf("the writable layer is still there: %v", err)
	}
	p.stop()
	p.remove()
	d.waitNoTrash()
}

// TestSEC71TrashOutlivesTheDaemon: what a daemon that was killed had not deleted yet, the next one deletes.
func TestSEC71TrashOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.stop()
	left := filepath.Join(d.trash(), "left")
	d.must(os.Mkdir(left, 0o700))
	nest(t, left, 3000)
	d.start()
	d.waitNoTrash()
}

func nest(t testing.TB, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range depth {
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o755)
		}
		var below int
		if err == nil {
			below, err = unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = below
	}
	unix.Close(fd)
}

// TestSEC72DeepLayer: what a container writes counts, however deep it lies.
func TestSEC72DeepLayer(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(d.tool("nest", "/", "3000", "5"))
	if s := c.waitExit(); s.ExitCode != 0 {
		t.Fatalf("the folders are not made: %v", s)
	}
	eventually(t, "3000 folders and 5 MiB in the deepest one to be counted", func() error {
		l := c.stats().WritableLayer // while it is measured, at least so much as was counted until then
		return unless(l.GetUsedBytes().GetValue() >= 5<<20 && l.GetInodesUsed().GetValue() >= 3000, "%v", l)
	})
	c.remove()
	d.waitNoTrash()
}

// TestDeepImage: an image with folders as deep as a path can say is pulled, run with a VOLUME there, and removed with few descriptors.
func TestDeepImage(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	p := d.runPod()
	d.pulled(busybox)
	d.fewDescriptors(200)
	id := d.hostile("deep:1", v1.Config{Volumes: map[string]struct{}{"/d": {}}}, []fixture.Entry{
		{Name: strings.Repeat("d/", 1500) + "file", Data: []byte("deep\n")},
	})
	c := p.run(ofImage(id), shell("cat /"+strings.Repeat("d/", 1500)+"file"))
	if s, got := c.waitExit(), text(c.finalLog(), "stdout"); s.ExitCode != 0 || got != "deep\n" {
		t.Errorf("%v, prints %q", s, got)
	}
	c.remove()
	d.must(d.removeImage(id))
	d.waitNoTrash()
}
