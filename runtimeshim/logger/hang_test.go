package logger

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// freeze and thaw are the ioctls FIFREEZE and FITHAW, which make a disk hang and work again.
const (
	freeze = 0xc0045877
	thaw   = 0xc0045878
)

func TestLoggerDiskHangs(t *testing.T) {
	n := newNode(t)
	disk := newDisk(t)
	slow := filepath.Join(disk, "slow.log")
	n.addTask("slow", slow)
	fifo := openFIFO(t, n.state.Task("slow").Stdout())
	n.startLogger("")
	n.must("open")
	if err := n.ask("open", "slow"); err != nil {
		t.Fatal(err)
	}
	hang(t, disk, freeze)
	thawed := false
	defer func() {
		if !thawed {
			hang(t, disk, thaw)
		}
	}()
	if err := unixfd.WriteFull(fifo, []byte(strings.Repeat("waits\n", 1000))); err != nil {
		t.Fatal(err)
	}

	n.print(0, "other\n")
	n.waitLog(n.log, "other") // other tasks do not wait
	n.must("finish")
	for _, verb := range []string{"finish", "reopen"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := wire.Call(ctx, n.state.LoggerSock(), verb, wire.LoggerTask{ID: "slow"}, nil, nil)
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("%s on a disk that hangs: %v", verb, err)
		}
		cancel()
	}

	hang(t, disk, thaw)
	thawed = true
	if err := n.ask("finish", "slow"); err != nil {
		t.Fatal(err)
	}
	n.wantLogs(strings.Repeat("waits\n", 1000), "", slow)
}

func hang(t *testing.T, dir string, how uint) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), how, 0); err != nil {
		t.Skip("this file system cannot be frozen:", err)
	}
}

// newDisk mounts a new ext4 file system.
func newDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	err := errors.Join(os.Mkdir(at, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20))
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{"mkfs.ext4 -q -F " + image, "mount -o loop " + image + " " + at} {
		args := strings.Fields(cmd)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}
