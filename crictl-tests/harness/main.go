package harness

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
	BinFolder string
	Cribox    = "cribox"
	Steps     = "cribox-steps" // the same, built to die at a named step
)

// Main is the TestMain of every package of tests: it refuses a host on which they cannot run.
func Main(m *testing.M) {
	if reason := cannotRunHere(); reason != "" { // red: what has not run must not look green
		fmt.Fprintln(os.Stderr, "crictl-tests need a host to themselves:", reason)
		os.Exit(1)
	}
	waitMore()
	code := m.Run()
	closeWorld()
	os.Exit(code)
}

// waitMore lets more tests run beside each other than there are processors: most of their time they
// wait.
func waitMore() {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(fmt.Sprint(2 * runtime.GOMAXPROCS(0)))
	}
}

func cannotRunHere() string {
	BinFolder = os.Getenv("CRIBOX_BIN")
	if BinFolder == "" {
		BinFolder = filepath.Join("..", "..", "bin")
	}
	absolute, err := filepath.Abs(BinFolder)
	if err != nil {
		return err.Error()
	}
	BinFolder = absolute
	if os.Getuid() != 0 {
		return "not root"
	}
	for _, name := range []string{"cribox", "cribox-helper", "cribox-steps", "runc", "crictl", "critest", "ginkgo", "cni/bridge"} {
		if _, err := os.Stat(Binary(name)); err != nil {
			return fmt.Sprintf("%v (set CRIBOX_BIN, or build with make)", err)
		}
	}
	return ""
}

// Binary is the path of one of the binaries under test, or of its tools. A path stays what it is.
func Binary(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(BinFolder, name)
}

// Command is one of the binaries under test with its arguments.
func Command(name string, args ...string) *exec.Cmd { return exec.Command(Binary(name), args...) }
