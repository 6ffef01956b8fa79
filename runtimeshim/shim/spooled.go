package shim

import (
	"bytes"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// What a runtime prints to stderr is often the only explanation of a failure: when it does not know
// an option, for example, or could not open its log.

// spoolWait is how long to wait for the logger to read what a failed runtime printed.
const spoolWait = time.Second

// spooled returns the end of what was written to a task's stderr, which the runtime shares. The
// logger stores it in a spool file. "" when the logger is slow, or the task has no log.
func spooled(d statedir.Task, fifo *os.File) string {
	for end := time.Now().Add(spoolWait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left, err := unix.IoctlGetInt(unixfd.Of(fifo), unix.TIOCINQ); err != nil || left == 0 {
			break
		}
	}
	f, err := os.OpenFile(d.At("stderr.spool"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > oci.MostSaid {
		if _, err := f.Seek(-oci.MostSaid, io.SeekEnd); err != nil {
			return ""
		}
	}
	raw, _ := io.ReadAll(io.LimitReader(f, oci.MostSaid))
	return string(bytes.Trim(raw, "\x00")) // zeros are a hole in the file
}
