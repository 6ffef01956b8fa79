package crictltests

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// The binaries under test: $CRIBOX_BIN, or bin/ beside this module.
var (
	binFolder string
	cribox    = "cribox"
	steps     = "cribox-steps" // the same, built to die at a named step
)

func TestMain(m *testing.M) {
	if reason := cannotRunHere(); reason != "" { // red: what has not run must not look green
		fmt.Fprintln(os.Stderr, "crictl-tests need a host to themselves:", reason)
		os.Exit(1)
	}
	waitMore()
	code := m.Run()
	closeWorld()
	os.Exit(code)
}

// waitMore lets more tests run beside each other than there are processors: most of their time they wait.
func waitMore() {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(fmt.Sprint(2 * runtime.GOMAXPROCS(0)))
	}
}

func cannotRunHere() string {
	binFolder = os.Getenv("CRIBOX_BIN")
	if binFolder == "" {
		binFolder = filepath.Join("..", "bin")
	}
	absolute, err := filepath.Abs(binFolder)
	if err != nil {
		return err.Error()
	}
	binFolder = absolute
	if os.Getuid() != 0 {
		return "not root"
	}
	for _, name := range []string{"cribox", "cribox-steps", "runc", "crictl", "critest", "ginkgo", "cni/bridge"} {
		if _, err := os.Stat(binary(name)); err != nil {
			return fmt.Sprintf("%v (set CRIBOX_BIN, or build with make)", err)
		}
	}
	return ""
}

func binary(name string) string { return filepath.Join(binFolder, name) }

// command is one of the binaries under test with its arguments.
func command(name string, args ...string) *exec.Cmd { return exec.Command(binary(name), args...) }
