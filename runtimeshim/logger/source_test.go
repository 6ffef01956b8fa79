package logger

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// TestSpool tests the file systems that a state folder may be on.
func TestSpool(t *testing.T) {
	for _, parent := range []string{os.TempDir(), "/dev/shm", "/run"} {
		t.Run(parent, func(t *testing.T) {
			dir, err := os.MkdirTemp(parent, "spool")
			if err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			testSource(t, dir)
		})
	}
}

func testSource(t *testing.T, dir string) {
	fifo, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "spool")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	out := openFIFO(t, fifo)
	s, err := openSource(fifo, file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	disk := &diskFile{fd: s.file}
	defer disk.Close()
	fill := func(want string) {
		t.Helper()
		if err := unixfd.WriteFull(out, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.fill(-1); n != len(want) || err != nil {
			t.Fatalf("fill: %d, %v, want %d", n, err, len(want))
		}
		if n, err := s.fill(-1); n != 0 || err != nil {
			t.Fatalf("fill of nothing: %d, %v", n, err)
		}
		got, err := s.spool.Last(len(want))
		if err != nil || string(got) != want {
			t.Fatalf("read: %.50q, %v, want %.50q", got, err, want)
		}
	}
	fill("one")
	fill("two")
	s.busy()
	fill(string(bytes.Repeat([]byte("x"), 200_000)))
	before := s.spool.Size()

	disk.Punch(before &^ 4095)
	fill("three")
	again, err := openSource(fifo, file)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	defer again.spool.Close()
	if again.spool.Size() != before+5 || s.spool.Size() != again.spool.Size() {
		t.Errorf("size %d, a second look %d, want %d", s.spool.Size(), again.spool.Size(), before+5)
	}
	if st, _ := unixfd.Stat(s.file); st.Blocks*512 > 3*4096 {
		t.Errorf("%d bytes are kept after punch", st.Blocks*512)
	}

	if err := disk.Truncate(0); err != nil {
		t.Fatal(err)
	}
	s.spool.Grow(-s.spool.Size())
	fill("four")
	if st, _ := unixfd.Stat(s.file); st.Size != 4 {
		t.Errorf("size %d after empty and 4 bytes", st.Size)
	}
}

func TestSpoolNeedsFIFO(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openSource(file, ""); err == nil {
		t.Error("a regular file was taken for a FIFO")
	}
}
