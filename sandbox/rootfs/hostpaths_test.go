package rootfs

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/table"
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
		if err := node.BlameHost(fmt.Errorf("stat /x: %w", c.errno)); !c.is(err) {
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
	p := &table.PodEntry{Config: &runtimeapi.PodSandboxConfig{LogDirectory: fifo}}
	c := &table.ContainerEntry{Config: &runtimeapi.ContainerConfig{LogPath: "a/0.log"}}
	done := make(chan error, 1)
	go func() { done <- MakeLogFolder(p, c) }()
	if err := <-done; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v", err)
	}
}
