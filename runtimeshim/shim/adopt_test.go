package shim

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// TestUnreadableFolderEndsTheShim: a shim that cannot list its tasks must not report that there are
// none.
func TestUnreadableFolderEndsTheShim(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "shim"), nil, 0o600))
	s := partsOf(dir)
	if err := s.adopter.adopt(context.Background()); err == nil {
		t.Error("it goes on")
	}
	if _, err := s.table.list(); err == nil || !strings.Contains(err.Error(), "shim") {
		t.Errorf("list: %v", err)
	}
}

// TestTooFewDescriptorsForKeeper: a shim whose limit of open files is too low for the descriptors in a keeper
// socket reports an error; it does not treat the rest as lost.
func TestTooFewDescriptorsForKeeper(t *testing.T) {
	d := statedir.Task(filepath.Join(t.TempDir(), "pod"))
	must(t, os.MkdirAll(string(d), 0o700))
	k, err := newKeeper(d)
	must(t, err)
	defer k.close()
	it := kept{keptHead: keptHead{ID: "c"}}
	for range 4 {
		r, w := pipeOf(t)
		it.add("fifo", r)
		it.add("fifo", w)
	}
	must(t, k.keep([]kept{it}))
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	next, err := unix.FcntlInt(uintptr(k.sock), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	unix.Close(next)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + 3, Max: was.Max}))
	all, err := k.recall()
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	if err == nil || !helper.OutOfResources(err) {
		t.Errorf("recalled %d: %v", len(all), err)
	}
	if all, err := k.recall(); err != nil || len(all) != 1 || len(all[0].files) != 8 {
		t.Errorf("afterwards: %v %v", all, err)
	}
}

// pipeOf returns a pipe that is closed when the test ends.
func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}
