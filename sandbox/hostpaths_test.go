package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestBlameHost: a file system that does not answer is no mistake of the request.
func TestBlameHost(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		is    func(error) bool
	}{
		{unix.ENOENT, errdefs.IsInvalidArgument}, {unix.ENOTDIR, errdefs.IsInvalidArgument}, {unix.ELOOP, errdefs.IsInvalidArgument},
		{unix.ENOTCONN, errdefs.IsUnavailable}, {unix.ESTALE, errdefs.IsUnavailable}, {unix.EIO, errdefs.IsUnavailable},
		{unix.ENOMEM, errdefs.IsUnavailable}, {unix.EMFILE, func(err error) bool { return !errdefs.IsInvalidArgument(err) }},
	} {
		if err := blameHost(fmt.Errorf("stat /x: %w", c.errno)); !c.is(err) {
			t.Errorf("%v", err)
		}
	}
}

// TestLogDirectoryIsAFIFO: nothing waits for who would write into it.
func TestLogDirectoryIsAFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "logs")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pod{config: &runtimeapi.PodSandboxConfig{LogDirectory: fifo}}
	c := &container{config: &runtimeapi.ContainerConfig{LogPath: "a/0.log"}}
	done := make(chan error, 1)
	go func() { done <- makeLogFolder(p, c) }()
	if err := <-done; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v", err)
	}
}

// TestVolumesCount: what a container writes to a volume of its image is its own.
func TestVolumesCount(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"upper", filepath.Join(volumesFolder, "0")} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path, "file"), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if l := measureLayer(filepath.Join(dir, "upper")); l.Bytes == nil || *l.Bytes < 2<<20 || *l.Inodes != 5 {
		t.Errorf("%v", l)
	}
}

// TestReadUpTo: a list of interfaces of any length is read in part.
func TestReadUpTo(t *testing.T) {
	b, err := readUpTo("/dev/zero", 1000)
	if err != nil || len(b) != 1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
