package client

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
)

// mostLog is the size from which on shim and logger empty their logs.
const mostLog = 256 << 10

// TestLogsOfShimAndLoggerAreBounded: both empty their log when they write to it and it is large.
func TestLogsOfShimAndLoggerAreBounded(t *testing.T) {
	h := newHost(t)
	emptied := func(process string, write func()) {
		log := filepath.Join(h.state, process+".log")
		must(t, os.Truncate(log, mostLog+1))
		write()
		h.eventually("the "+process+" empties its log", func() bool { st, err := os.Stat(log); return err == nil && st.Size() <= mostLog })
	}
	emptied("logger", func() {
		st := h.params("c", sh("seq 100000; exec sleep 1000000"))
		st.LogLimit = runtimeshim.MinLogLimit // it says that the log is full
		h.start(st)
	})
	emptied("shim", func() {
		must(t, os.Mkdir(filepath.Join(h.state, "shim/c/exit"), 0o700)) // it says that the exit is not written
		must(t, h.client.Kill(t.Context(), "c", unix.SIGKILL, false))
		h.wantExit("c", 137)
	})
}
