package security

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func llistxattr(path string, buf []byte) (int, error) { return unix.Llistxattr(path, buf) }

// sources are the Go files below a folder of the repository that are not tests.
func sources(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && (strings.HasPrefix(e.Name(), ".") && len(e.Name()) > 2 || e.Name() == "crictl-tests" || e.Name() == "bin") {
			return filepath.SkipDir
		}
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("no sources in %s", dir)
	}
	return all
}

// TestSEC34ExecOutput: what an exec'ed process prints is bounded, for the daemon's memory and for the reply.
func TestSEC34ExecOutput(t *testing.T) {
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	for _, script := range []string{
		"head -c 300000000 /dev/zero", "head -c 300000000 /dev/zero >&2", "yes | head -c 100000000; yes | head -c 100000000 >&2",
	} {
		grown := d.PeakOf(func() {
			r, err := c.TryExec(120, "sh", "-c", script)
			if err != nil || r.Code != 0 { // a reply over the client's 16 MiB would be an error
				t.Errorf("%s: exit code %d, %v", script, r.Code, err)
			}
			if len(r.Stdout)+len(r.Stderr) == 0 {
				t.Errorf("%s: nothing came back", script)
			}
		})
		if grown > 80<<20 {
			t.Errorf("%s: the daemon grew by %d MiB", script, grown>>20)
		}
	}
}

// TestSEC37ExecLeavesChild: a child that keeps an exec's output open holds nothing of the daemon.
func TestSEC37ExecLeavesChild(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("pause")) // which buries the children of others
	c.Exec("true")
	before := d.Ledger()
	for range 20 {
		c.Exec("sh", "-c", "sleep 4325 & echo parent")
	}
	c.Exec("sh", "-c", "kill $(pidof sleep)")
	d.WantNoProcess(c, "4325")
	d.WantFlat(before)
}

// TestSEC41AbstractSockets: a pod on the host's network finds no socket of the runtime there.
func TestSEC41AbstractSockets(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	ours := map[string]bool{}
	for _, pid := range []int{d.Process.PID(), d.WaitRole("shim", 0), d.WaitRole("logger", 0)} {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		d.Must(err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
				ours[strings.Trim(strings.TrimPrefix(to, "socket:"), "[]")] = true
			}
		}
	}
	found := 0
	for line := range strings.Lines(c.Exec("cat", "/proc/net/unix")) {
		f := strings.Fields(line)
		if len(f) < 7 || !ours[f[6]] {
			continue
		}
		found++
		if len(f) > 7 && strings.HasPrefix(f[7], "@") {
			t.Errorf("a socket of the runtime without a file: %s", f[7])
		}
	}
	if found == 0 {
		t.Error("none of the runtime's sockets was seen: this proves nothing")
	}
}

// TestSEC42Folders: a user of the node gets into none of the daemon's folders and to none of its sockets.
func TestSEC42Folders(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	try := func(args ...string) error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr, cmd.Dir = nobody, "/"
		return cmd.Run()
	}
	if err := try("ls", d.Dir); err != nil {
		t.Fatalf("nobody cannot even see the test's folder: %v", err)
	}
	for _, path := range []string{d.Root, d.State, filepath.Join(d.State, "rootfs", c.ID), filepath.Join(d.Root, "layers"), filepath.Join(d.Root, "content")} {
		if try("ls", path) == nil {
			t.Errorf("nobody can list %s", path)
		}
	}
	if try("cat", filepath.Join(d.State, "rootfs", c.ID, "etc/passwd")) == nil {
		t.Error("nobody can read a container's files")
	}
	for _, socket := range []string{d.Socket, filepath.Join(d.State, "shim.sock"), filepath.Join(d.State, "logger.sock")} {
		info, err := os.Stat(socket)
		d.Must(err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", socket, info.Mode().Perm())
		}
		conn, err := net.Dial("unix", socket)
		d.Must(err)
		conn.Close()
		if try("test", "-w", socket) == nil {
			t.Errorf("nobody can write to %s", socket)
		}
	}
}

// TestSEC43Temporary: nothing is made under a name that others could make first in a folder that is everybody's. What the standard
// library makes there has a name by chance, and is made only when it was not there.
func TestSEC43Temporary(t *testing.T) {
	t.Parallel()
	shared := regexp.MustCompile(`os\.TempDir\(|"/tmp[/"]|"/var/tmp|"/dev/shm/`)
	for _, file := range sources(t, "../..") {
		for n, line := range strings.Split(harness.HostFile(t, file), "\n") {
			if code, _, _ := strings.Cut(line, "//"); shared.MatchString(code) {
				t.Errorf("%s:%d: %s", file, n+1, strings.TrimSpace(line))
			}
		}
	}
}

// TestSEC64NoChroot: the daemon never makes a container's root its own, and loads no library that it could find there.
func TestSEC64NoChroot(t *testing.T) {
	t.Parallel()
	forbidden := regexp.MustCompile(`(?m)\b(unix|syscall)\.(Chroot|PivotRoot)\b|\bChroot:|^(import)?\s*"(C|plugin|os/user)"$`)
	for _, line := range []string{"unix.Chroot(x)", "syscall.PivotRoot", "Chroot: dir", `import "C"`, "\t\"plugin\"", "\t\"os/user\""} {
		if !forbidden.MatchString("package p\n" + line + "\n") {
			t.Fatalf("%q would not be found", line)
		}
	}
	for _, file := range sources(t, "../..") {
		if word := forbidden.FindString(harness.HostFile(t, file)); word != "" {
			t.Errorf("%s has %s", file, word)
		}
	}
	out, err := exec.Command("go", "version", "-m", harness.Binary(harness.Cribox)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(strings.Split(string(out), "\n"), func(l string) bool { return strings.Contains(l, "CGO_ENABLED=0") }) {
		t.Errorf("the binary is not without C:\n%s", out)
	}
}
