package crictltests

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
	d := newDaemon(t)
	c := d.runPod().run(idle())
	for _, script := range []string{
		"head -c 300000000 /dev/zero", "head -c 300000000 /dev/zero >&2", "yes | head -c 100000000; yes | head -c 100000000 >&2",
	} {
		grown := d.peakOf(func() {
			r, err := c.tryExec(120, "sh", "-c", script)
			if err != nil || r.code != 0 { // a reply over the client's 16 MiB would be an error
				t.Errorf("%s: exit code %d, %v", script, r.code, err)
			}
			if len(r.stdout)+len(r.stderr) == 0 {
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
	d := newDaemon(t)
	c := d.runPod().run(d.tool("pause")) // which buries the children of others
	c.exec("true")
	before := d.ledger()
	for range 20 {
		c.exec("sh", "-c", "sleep 4325 & echo parent")
	}
	c.exec("sh", "-c", "kill $(pidof sleep)")
	d.wantNoProcess(c, "4325")
	d.wantFlat(before)
}

// TestSEC41AbstractSockets: a pod on the host's network finds no socket of the runtime there.
func TestSEC41AbstractSockets(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod(onHostNetwork).run(idle())
	ours := map[string]bool{}
	for _, pid := range []int{d.process.pid(), d.waitRole("shim", 0), d.waitRole("logger", 0)} {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		d.must(err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
				ours[strings.Trim(strings.TrimPrefix(to, "socket:"), "[]")] = true
			}
		}
	}
	found := 0
	for line := range strings.Lines(c.exec("cat", "/proc/net/unix")) {
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
	d := newDaemon(t)
	c := d.runPod().run(idle())
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	try := func(args ...string) error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr, cmd.Dir = nobody, "/"
		return cmd.Run()
	}
	if err := try("ls", d.dir); err != nil {
		t.Fatalf("nobody cannot even see the test's folder: %v", err)
	}
	for _, path := range []string{d.root, d.state, filepath.Join(d.state, "rootfs", c.id), filepath.Join(d.root, "layers"), filepath.Join(d.root, "content")} {
		if try("ls", path) == nil {
			t.Errorf("nobody can list %s", path)
		}
	}
	if try("cat", filepath.Join(d.state, "rootfs", c.id, "etc/passwd")) == nil {
		t.Error("nobody can read a container's files")
	}
	for _, socket := range []string{d.socket, filepath.Join(d.state, "shim.sock"), filepath.Join(d.state, "logger.sock")} {
		info, err := os.Stat(socket)
		d.must(err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", socket, info.Mode().Perm())
		}
		conn, err := net.Dial("unix", socket)
		d.must(err)
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
	for _, file := range sources(t, "..") {
		for n, line := range strings.Split(hostFile(t, file), "\n") {
			if code, _, _ := strings.Cut(line, "//"); shared.MatchString(code) {
				t.Errorf("%s:%d: %s", file, n+1, strings.TrimSpace(line))
			}
		}
	}
}

// TestSEC64NoChroot: the daemon never makes a container's root its own, and loads no library that it could find there.
func TestSEC64NoChroot(t *testing.T) {
	t.Parallel()
	for _, file := range sources(t, "..") {
		text := hostFile(t, file)
		for _, word := range []string{"Chroot", "PivotRoot", `import "C"`, `"plugin"`, "os/user"} {
			if strings.Contains(text, word) {
				t.Errorf("%s has %s", file, word)
			}
		}
	}
	out, err := exec.Command("go", "version", "-m", binary(cribox)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(strings.Split(string(out), "\n"), func(l string) bool { return strings.Contains(l, "CGO_ENABLED=0") }) {
		t.Errorf("the binary is not without C:\n%s", out)
	}
}
