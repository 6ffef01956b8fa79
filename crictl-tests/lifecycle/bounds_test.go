package lifecycle

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// etcFiles are the files that every container of a pod has from the state folder.
var etcFiles = []string{"hosts", "hostname", "resolv.conf"}

// fill writes to a file until it takes no more, and prints how large it has become.
func fill(path string) string {
	return fmt.Sprintf("cat /dev/zero >>%s 2>/dev/null; wc -c <%s", path, path)
}

// TestSEC69EtcFiles: a container that writes to the files of its pod without end fills a megabyte of its own, and nobody else notices.
func TestSEC69EtcFiles(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]harness.PodOption{"plain": nil, "user namespace": {harness.InUserNamespace}, "host network": {harness.OnHostNetwork}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := harness.NewDaemon(t)
			p := d.RunPod(options...)
			c := p.Run(harness.Idle())
			var total int64
			for _, file := range etcFiles {
				var size int64
				if _, err := fmt.Sscan(c.Exec("sh", "-c", fill("/etc/"+file)), &size); err != nil {
					t.Fatal(err)
				}
				total += size
			}
			if total < 1<<19 || total > 2<<20 {
				t.Errorf("the files took %d bytes, want about a megabyte", total)
			}
			d.Restart()
			p.Run(harness.Idle()).Exec("true")
			d.RunPod().Run(harness.Idle()).Exec("true")
			c.Exec("sh", "-c", "echo 127.0.0.1 again >/etc/hosts && grep again /etc/hosts")
		})
	}
}

// TestSEC69NothingWritable: no file that a container can write to lies on the file system of the state folder.
func TestSEC69NothingWritable(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	var state unix.Stat_t
	d.Must(unix.Stat(d.State, &state))
	device := fmt.Sprintf("%d:%d", unix.Major(state.Dev), unix.Minor(state.Dev))
	for name, options := range map[string][]harness.PodOption{"plain": nil, "user namespace": {harness.InUserNamespace}} {
		c := d.RunPod(options...).Run(harness.Idle())
		for line := range strings.Lines(c.Exec("cat", "/proc/self/mountinfo")) {
			f := strings.Fields(line)
			if f[2] == device && !strings.HasPrefix(f[5], "ro") {
				t.Errorf("%s: %s is writable and lies on the state folder's file system: %s", name, f[4], line)
			}
		}
	}
}

// TestSEC69OldPod: a pod whose files lie directly in its folder, as the version before made them, takes more containers, and goes without a rest.
func TestSEC69OldPod(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	d.Kill()
	folder := filepath.Join(d.State, "pods", p.ID)
	etc := filepath.Join(folder, "etc")
	for _, file := range etcFiles {
		text, err := os.ReadFile(filepath.Join(etc, file))
		d.Must(err)
		d.Must(os.WriteFile(filepath.Join(folder, file), append(text, "# of the old version\n"...), 0o644))
	}
	d.Must(unix.Unmount(etc, unix.MNT_DETACH))
	d.Must(os.Remove(etc))
	d.Start()
	c := p.Run(harness.Idle())
	if hosts := c.Exec("cat", "/etc/hosts"); !strings.Contains(hosts, "# of the old version") {
		t.Errorf("/etc/hosts of a container in an old pod is %q", hosts)
	}
	p.Stop()
	p.Remove()
}

// TestSEC76Spool: a container prints without end while its log cannot be written. What waits in the state folder stays small, and the container
// waits with it.
func TestSEC76Spool(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	full := filepath.Join(d.Dir, "full")
	d.Must(os.Mkdir(full, 0o755))
	d.Must(unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.LogDirectory = full })
	c := p.Run(harness.Shell("while :; do echo 0123456789012345678901234567890123456789; done & cat /dev/zero"))
	folder := filepath.Join(d.State, "shim", c.ID)
	var before int64
	looks := 0 // at which nothing has changed
	harness.Eventually(t, "the container to wait for its log", func() error {
		size := sizeOf(t, folder)
		log, err := os.Stat(c.LogPath())
		if looks++; size != before || size == 0 || err != nil || log.Size() == 0 {
			looks = 0
		}
		before = size
		return harness.Unless(looks > 50 || size > 64<<20, "%d bytes wait", size)
	})
	if before > 4<<20 {
		t.Errorf("%d bytes wait in the state folder", before)
	}
	c.Stop(0)
	p.Stop()
	p.Remove()
	d.Must(unix.Unmount(full, unix.MNT_DETACH))
}

// sizeOf is how much the files in a folder take.
func sizeOf(t testing.TB, dir string) (size int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, e.Name()), &st) == nil {
			size += st.Blocks * 512
		}
	}
	return size
}

// TestSEC78Copies: of what is asked for only small things have a copy in the state folder.
func TestSEC78Copies(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Create(harness.With(func(c *cri.ContainerConfig) {
		for n := range 10 {
			c.Envs = append(c.Envs, &cri.KeyValue{Key: fmt.Sprint("LARGE", n), Value: bytes.Repeat([]byte("x"), 100<<10)})
		}
	}), harness.Idle())
	if size := sizeOf(t, filepath.Join(d.State, "records", p.ID)); size > 192<<10 {
		t.Errorf("the copies of a request of a megabyte take %d bytes", size)
	}
	c.Start()
	ctx, leave := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		_, _ = c.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "echo >/there; exec sleep 100000"}})
	})
	defer running.Wait()
	defer leave()
	harness.Eventually(t, "a command that runs, and one copy of the environment", func() error {
		if r, err := c.TryExec(60, "test", "-e", "/there"); err != nil || r.Code != 0 {
			return fmt.Errorf("the command is not there: %v", err)
		}
		if size := specSize(t, d.State); size > 1500<<10 {
			return fmt.Errorf("the files take %d bytes", size)
		}
		return nil
	})
}

// specSize is what the specs and the files of commands below a folder take, those with several names once.
func specSize(t *testing.T, dir string) (size int64) {
	t.Helper()
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil { // it may be gone
			return nil
		}
		if e.Name() == "rootfs" {
			return filepath.SkipDir
		}
		if !e.Type().IsRegular() || e.Name() != "config.json" && !strings.HasPrefix(e.Name(), "exec-") {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if inode := info.Sys().(*syscall.Stat_t).Ino; !seen[inode] {
			seen[inode] = true
			size += info.Size()
		}
		return nil
	})
	return size
}
