package kubetests

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	keep  = flag.Bool("keep", false, "use the cluster that runs, and leave it")
	nodes = flag.Int("nodes", 2, "nodes of the cluster")
)

// Where hack/kube keeps the cluster.
var (
	clusterDir = folder("CRIBOX_KUBE", "/var/lib/cribox-kube")
	stateDir   = folder("CRIBOX_KUBE_STATE", "/run/cribox-kube")
	binFolder  string
)

func folder(variable, fallback string) string {
	if dir := os.Getenv(variable); dir != "" {
		return dir
	}
	return fallback
}

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8") // most of their time they wait
	}
	os.Exit(run(m))
}

// run makes the cluster, and takes it away whatever the tests say: what it leaves behind is a failure too.
func run(m *testing.M) int {
	var err error
	if binFolder, err = filepath.Abs(folder("CRIBOX_BIN", "../bin")); err != nil {
		return complain(err)
	}
	if err := script("up.sh", fmt.Sprintf("NODES=%d", *nodes)); err != nil {
		return complain(err)
	}
	code := m.Run()
	if *keep {
		return code
	}
	if err := script("down.sh"); err != nil {
		return max(code, complain(err))
	}
	return code
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "kube-tests:", err)
	return 1
}

func script(name string, env ...string) error {
	cmd := exec.Command("bash", filepath.Join("..", "hack", "kube", name))
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
