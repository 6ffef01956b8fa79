package security

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// nested is deeper than fewDescriptors allows with a descriptor a folder, and than a path can say.
const nested = 2500

func trash(d *harness.Daemon) string { return filepath.Join(d.Root, "containers", ".trash") }

// waitNoTrash waits until all that was removed is deleted.
func waitNoTrash(d *harness.Daemon) {
	d.Helper()
	harness.Eventually(d, "what was removed to be deleted", func() error {
		entries, err := os.ReadDir(trash(d))
		if err != nil {
			return err
		}
		return harness.Unless(len(entries) == 0, "%d things are in the trash", len(entries))
	})
}

// fewDescriptors takes the daemon all but so many descriptors.
func fewDescriptors(d *harness.Daemon, n uint64) {
	d.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Process.PID()))
	d.Must(err)
	most := unix.Rlimit{Cur: uint64(len(open)) + n, Max: uint64(len(open)) + n}
	d.Must(unix.Prlimit(d.Process.PID(), unix.RLIMIT_NOFILE, &most, nil))
}

// TestSEC71NestedFolders: however deep the folders are that a container has made, in its writable layer, in a VOLUME of its image or in
// /dev/shm, container and pod can be removed, with few descriptors.
func TestSEC71NestedFolders(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("nest", "/", fmt.Sprint(nested)))
	shm := p.Run(d.Tool("nest", "/dev/shm", fmt.Sprint(nested)))
	again := p.Run(d.Tool("nest", "/", fmt.Sprint(nested)))
	for _, c := range []*harness.Container{c, shm, again} {
		if s := c.WaitExit(); s.ExitCode != 0 {
			t.Fatalf("the folders are not made: %v", s)
		}
	}
	fewDescriptors(d, 200)
	c.Remove()
	if _, err := os.Lstat(filepath.Join(d.Root, "containers", c.ID)); !os.IsNotExist(err) {
		t.Errorf("the writable layer is still there: %v", err)
	}
	p.Stop()
	p.Remove()
	waitNoTrash(d)
}

// TestSEC71TrashOutlivesTheDaemon: what a daemon that was killed had not deleted yet, the next one deletes.
func TestSEC71TrashOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Stop()
	left := filepath.Join(trash(d), "left")
	d.Must(os.Mkdir(left, 0o700))
	nest(t, left, 3000)
	d.Start()
	waitNoTrash(d)
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
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("nest", "/", "3000", "5"))
	if s := c.WaitExit(); s.ExitCode != 0 {
		t.Fatalf("the folders are not made: %v", s)
	}
	harness.Eventually(t, "3000 folders and 5 MiB in the deepest one to be counted", func() error {
		l := c.Stats().WritableLayer // while it is measured, at least so much as was counted until then
		return harness.Unless(l.GetUsedBytes().GetValue() >= 5<<20 && l.GetInodesUsed().GetValue() >= 3000, "%v", l)
	})
	c.Remove()
	waitNoTrash(d)
}

// TestDeepImage: an image with folders as deep as a path can say is pulled, run with a VOLUME there, and removed with few descriptors.
func TestDeepImage(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	fewDescriptors(d, 200)
	id := d.Hostile("deep:1", v1.Config{Volumes: map[string]struct{}{"/d": {}}}, []fixture.Entry{
		{Name: strings.Repeat("d/", 1500) + "file", Data: []byte("deep\n")},
	})
	c := p.Run(harness.OfImage(id), harness.Shell("cat /"+strings.Repeat("d/", 1500)+"file"))
	if s, got := c.WaitExit(), harness.TextOf(c.FinalLog(), "stdout"); s.ExitCode != 0 || got != "deep\n" {
		t.Errorf("%v, prints %q", s, got)
	}
	c.Remove()
	d.Must(d.RemoveImage(id))
	waitNoTrash(d)
}
