package writeback

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestGrown: once a step has been written, the kernel has nothing of it left to begin.
func TestGrown(t *testing.T) {
	file, err := os.CreateTemp(".", ".grown-") // a temporary folder may be in memory
	if err != nil {
		t.Skip(err)
	}
	defer file.Close()
	defer os.Remove(file.Name())
	f := File{FD: int(file.Fd())}
	for _, steps := range []int64{1, 2} {
		if _, err := file.Write(make([]byte, Step)); err != nil {
			t.Fatal(err)
		}
		f.Grown(steps * Step)
		if left := dirty(t, file); left != 0 {
			t.Errorf("with %d bytes, %d pages are not begun", steps*Step, left)
		}
	}
}

// dirty returns how many pages of a file the kernel has not begun to write.
func dirty(t *testing.T, f *os.File) uint64 {
	const cachestat = 451
	var span [2]uint64 // from its begin to its end
	var pages struct{ cached, dirty, writeback, evicted, recently uint64 }
	_, _, errno := unix.Syscall6(cachestat, f.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&pages)), 0, 0, 0)
	if errors.Is(errno, unix.ENOSYS) {
		t.Skip("cachestat(2) needs Linux 6.5")
	}
	if errno != 0 {
		t.Skip(errno)
	}
	return pages.dirty
}
