package resources

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// The gate on counters: what one pod with one container costs from RunPodSandbox to RemovePodSandbox, each execve counted,
// without pause and the entrypoint.
const (
	mostRuntimePrograms = 4 // the program that starts pause; runc, runc init and runc delete for the container
	mostSyncs           = 0
	mostSyncsForeignCNI = 1 // the line that remembers an ADD of a plugin that is not ours
)

func TestCostOfAPod(t *testing.T) {
	d := harness.NewDaemon(t)
	wantCost(d, mostSyncs)
}

func TestCostOfAPodWithForeignPlugins(t *testing.T) {
	d := harness.NewDaemon(t, harness.WithOwnNetwork())
	d.WriteNetwork("foreign")
	wantCost(d, mostSyncsForeignCNI)
}

func wantCost(d *harness.Daemon, mostSyncs int) {
	d.Helper()
	trace := newTracer(d.TB)
	d.RunPod().Run(harness.Idle()).UntilNative()
	onePod(d) // whatever is made once is made
	trace.follow(d.Process.PID(), d.WaitRole("shim", 0), d.WaitRole("logger", 0))
	onePod(d)
	cost := trace.result()

	var runtime, plugins, others []string
	for _, p := range cost.programs {
		switch name := filepath.Base(p.path); {
		case strings.HasPrefix(p.path, harness.Binary("cni")+"/"):
			plugins = append(plugins, name)
		case isFirewall(name):
			others = append(others, name)
		case name == "pause", p.path == "/bin/sleep":
		default:
			runtime = append(runtime, p.path)
		}
	}
	d.Logf("runtime programs: %d %v", len(runtime), runtime)
	d.Logf("network plugins: %d %v, and what they execute: %d", len(plugins), plugins, len(others))
	d.Logf("syncs: %d", len(cost.syncs))
	if len(runtime) > mostRuntimePrograms {
		d.Errorf("%d runtime programs for one pod, want at most %d: %v", len(runtime), mostRuntimePrograms, runtime)
	}
	if len(runtime) == 0 {
		d.Error("no runtime program was seen at all: the tracer does not see the shim")
	}
	if len(cost.syncs) > mostSyncs {
		d.Errorf("%d syncs for one pod, want at most %d:\n%s", len(cost.syncs), mostSyncs, strings.Join(cost.syncs, "\n"))
	}
}

// TestProgramsOfANativeExec: nothing of a runtime is executed for a command.
func TestProgramsOfANativeExec(t *testing.T) {
	d := harness.NewDaemon(t)
	trace := newTracer(d.TB)
	c := d.RunPod().Run(harness.Idle()).UntilNative()
	trace.follow(d.Process.PID(), d.WaitRole("shim", 0), d.WaitRole("logger", 0))
	c.Exec("true")
	own := 0
	for _, p := range trace.result().programs {
		t.Logf("executed %s", p.path)
		if strings.HasPrefix(p.path, "/proc/self/") { // place does it once, runc to start itself again
			own++
		}
		if filepath.Base(p.path) == "runc" || own > 1 {
			t.Errorf("a command has executed %s", p.path)
		}
	}
	if own == 0 {
		t.Error("no program was seen at all: the tracer does not see the shim")
	}
}

func isFirewall(name string) bool {
	for _, prefix := range []string{"iptables", "ip6tables", "xtables", "nft", "sysctl", "modprobe"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// onePod is the life of a pod with one container.
func onePod(d *harness.Daemon) {
	d.Helper()
	p := d.RunPod()
	c := p.Run(harness.Idle())
	c.Stop(0)
	p.Stop()
	c.Remove()
	p.Remove()
}

// TestTracerSees is the test of the counter itself: it must see what is executed and synced, through children too.
func TestTracerSees(t *testing.T) {
	trace := newTracer(t)
	trace.follow(os.Getpid())
	file := filepath.Join(t.TempDir(), "synced")
	if out, err := exec.Command("sh", "-c", "echo > "+file+"; exec sync "+file).CombinedOutput(); err != nil {
		t.Fatalf("sync: %v\n%s", err, out)
	}
	seen := trace.result()
	if len(seen.programs) != 2 || len(seen.syncs) != 1 {
		t.Errorf("saw programs %v and syncs %v; want sh, sync and one fsync", seen.programs, seen.syncs)
	}
}
