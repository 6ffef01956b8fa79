package crictl

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestHour runs hack/hour.sh, the first hour of a new user, which fails where a command does not say what it should.
func TestHour(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t) // for its folder and its network; the script starts the daemon of the package
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	programs, err := filepath.Abs(harness.BinFolder)
	d.Must(err)
	cmd := exec.CommandContext(ctx, "../../hack/hour.sh")
	cmd.Env = append(os.Environ(), "HOUR_DIR="+filepath.Join(d.Dir, "hour"), "HOUR_SUBNET="+d.Subnet, "CRIBOX_BIN="+programs)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // the script cleans up
	cmd.WaitDelay = time.Minute
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
	if !strings.Contains(out.String(), "==> removing everything\n") {
		t.Error("the end of it is missing")
	}
}
