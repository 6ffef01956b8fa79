package lifecycle

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestHelperProgram: shim and logger are started from cribox-helper, which needs a quarter of the
// memory, and from cribox where that is missing, of another version, or no program.
func TestHelperProgram(t *testing.T) {
	t.Run("beside the daemon", func(t *testing.T) {
		wantHelpers(harness.NewDaemon(t), "cribox-helper")
	})
	for name, beside := range map[string]string{
		"missing": "", "of another version": "#!/bin/sh\necho cribox-helper v0.0.1\n", "no program": "text\n",
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.NewDaemon(t, withHelper(t, beside))
			wantHelpers(d, "cribox")
			log, err := os.ReadFile(d.LogFile())
			d.Must(err)
			if said := strings.Contains(string(log), "shim and logger are started from"); said != (beside != "") {
				t.Errorf("the log says why: %v\n%s", said, log)
			}
		})
	}
}

// withHelper runs a daemon from a folder of its own, with a cribox-helper of that text beside it
// unless it is "".
func withHelper(t *testing.T, text string) harness.Option {
	dir := t.TempDir()
	if out, err := exec.Command("cp", harness.Binary(harness.Cribox), dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the program: %v: %s", err, out)
	}
	if text != "" {
		if err := harness.WriteProgram(filepath.Join(dir, "cribox-helper"), text); err != nil {
			t.Fatal(err)
		}
	}
	return func(s *harness.Settings) { s.Binary = filepath.Join(dir, "cribox") }
}

// wantHelpers runs a container and looks at the programs of shim and logger.
func wantHelpers(d *harness.Daemon, want string) {
	d.Helper()
	d.RunPod().Run(harness.Idle())
	for _, role := range []string{"shim", "logger"} {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", d.Role(role)))
		d.Must(err)
		if filepath.Base(exe) != want {
			d.Errorf("the %s runs from %s, want %s", role, exe, want)
		}
	}
}
