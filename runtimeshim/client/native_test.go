package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
)

// nativeHost is a host whose runtime writes down what it executes.
type nativeHost struct {
	*host
	calls string
}

func newNativeHost(t *testing.T) *nativeHost {
	if !exists("/sys/fs/cgroup/devices") {
		t.Skip("needs cgroups of version 1")
	}
	h := &nativeHost{host: newHost(t)}
	dir := filepath.Dir(h.state)
	h.calls = filepath.Join(dir, "calls")
	script := filepath.Join(dir, "runc")
	h.writeScript(script, fmt.Sprintf("echo \"$*\" >>%s\nexec %s \"$@\"\n", h.calls, h.runc))
	h.runc = script
	return h
}

// byRuntime counts the commands that the runtime has executed.
func (h *nativeHost) byRuntime() int {
	raw, _ := os.ReadFile(h.calls)
	return strings.Count(string(raw), " exec ")
}

// idle starts a container for native commands.
func (h *nativeHost) idle(opts ...specOption) runtimeshim.Task {
	h.t.Helper()
	st := h.params("c", []string{"/bin/sleep", "1000000"}, append(opts, func(spec map[string]any) {
		process := spec["process"].(map[string]any)
		process["noNewPrivileges"], process["capabilities"] = true, map[string]any{}
	})...)
	st.NativeExec = true
	return h.start(st)
}

// execute executes a command natively, and returns its output.
func (h *nativeHost) execute(ctx context.Context, cwd, stdin string, args ...string) (code int32, out string, err error) {
	h.t.Helper()
	p := process(args...)
	p["cwd"], p["env"], p["capabilities"], p["noNewPrivileges"] = cwd, []string{"PATH=/bin", "HOME=/"}, map[string]any{}, true
	p["rlimits"] = []map[string]any{{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}}
	in, feed, err := os.Pipe()
	must(h.t, err)
	r, w, err := os.Pipe()
	must(h.t, err)
	defer r.Close()
	go func() {
		defer feed.Close()
		io.WriteString(feed, stdin)
	}()
	code, err = h.client.Exec(ctx, runtimeshim.Exec{ID: "c", Runtime: h.runc, Process: asJSON(h.t, p), Native: true, Stdin: in, Stdout: w})
	in.Close()
	w.Close()
	raw, readErr := io.ReadAll(r)
	must(h.t, readErr)
	return code, string(raw), err
}

// wantAlone: the container has its first process only, and no command has left a file.
func (h *nativeHost) wantAlone() {
	h.t.Helper()
	h.eventually("the container has one process", func() bool { return len(h.inContainer()) == 1 })
	h.wantNoExecFiles("c")
}

func (h *nativeHost) inContainer() []int {
	return cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c"))
}

// TestNativeExecAfterTheShim: commands stay native when the shim was killed, with the same seccomp filter.
func TestNativeExecAfterTheShim(t *testing.T) {
	h := newNativeHost(t)
	h.idle(func(spec map[string]any) {
		spec["linux"].(map[string]any)["seccomp"] = map[string]any{"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls": []map[string]any{{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO"}}}
	})
	run := func() (native bool) {
		t.Helper()
		before := h.byRuntime()
		code, out, err := h.execute(t.Context(), "/", "typed", sh("cat; cat /proc/self/status; exit 3")...)
		if code != 3 || !strings.HasPrefix(out, "typed") || !strings.Contains(out, "Seccomp:\t2\n") || err != nil {
			t.Errorf("got %d %q %v", code, out, err)
		}
		return h.byRuntime() == before
	}
	h.eventually("a native command", run)
	h.kill9("shim.lock")
	if !run() {
		t.Error("after the end of the shim the runtime has executed a command")
	}
	h.wantAlone()
}

// TestShimDiesInNativeExec: the command of a shim that dies is ended, and the next one is executed.
func TestShimDiesInNativeExec(t *testing.T) {
	for _, step := range []string{"shim.exec.place", "shim.exec.placed"} {
		t.Run(step, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", step)
			h := newNativeHost(t)
			h.idle()
			dead := h.deathOf("shim.lock")
			if _, _, err := h.execute(t.Context(), "/", "", "/bin/sleep", "1000000"); !errdefs.IsUnavailable(err) {
				t.Errorf("got %v", err)
			}
			dead() // until then its socket takes another call, and loses it
			if code, _, err := h.execute(t.Context(), "/", "", "/bin/true"); code != 0 || err != nil {
				t.Errorf("the next one: %d, %v", code, err)
			}
			h.wantAlone()
			if n := h.byRuntime(); n > 0 {
				t.Errorf("the runtime has executed %d commands", n)
			}
		})
	}
}

// TestSEC82NativeExecHangs: a command that hangs in a file system of its container before it is executed ends with its caller, and with
// the shim. Until then it has no way to say which process it is.
func TestSEC82NativeExecHangs(t *testing.T) {
	for _, shim := range []bool{false, true} {
		t.Run(fmt.Sprintf("shim %v", shim), func(t *testing.T) {
			h := newNativeHost(t)
			folder := newHangingFolder(t)
			first := h.idle(func(spec map[string]any) {
				spec["mounts"] = append(spec["mounts"].([]map[string]any),
					map[string]any{"destination": "/tmp", "type": "bind", "source": folder.path, "options": []string{"bind"}})
			})
			folder.hang()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, _, err := h.execute(ctx, "/tmp", "", "/bin/true")
				done <- err
			}()
			h.eventually("it hangs", func() bool {
				for _, pid := range h.inContainer() {
					if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); pid != first.Pid && err == nil && len(fds) == 3 {
						h.wantNoPidPage(pid)
						return true
					}
				}
				return false
			})
			if shim {
				h.kill9("shim.lock")
				h.task("c") // starts the next one
				h.wantAlone()
				<-done
			} else {
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			}
			h.wantAlone()
			if raw, _ := os.ReadFile(filepath.Join(h.state, "shim.log")); bytes.Contains(raw, []byte("may still run")) {
				t.Errorf("the shim is not sure: %s", raw)
			}
		})
	}
}

// wantNoPidPage: of the file that place shares with the shim, the process has the first page only.
func (h *nativeHost) wantNoPidPage(pid int) {
	h.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(h.t, err)
	if n := strings.Count(string(raw), "cribox-place-state"); n != 1 {
		h.t.Errorf("the process has %d pages:\n%s", n, raw)
	}
}

// hangingFolder is a file system with one folder, which answers until hang is called.
type hangingFolder struct {
	path    string
	dev     int
	stop    *os.File // closed: stop
	stopped chan struct{}
}

func newHangingFolder(t *testing.T) *hangingFolder {
	t.Helper()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no file system in user space: %v", err)
	}
	r, w, err := os.Pipe()
	must(t, err)
	f := &hangingFolder{path: t.TempDir(), dev: dev, stop: w, stopped: make(chan struct{})}
	if err := unix.Mount("cribox-test", f.path, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev)); err != nil {
		t.Skipf("no file system in user space: %v", err)
	}
	go func() {
		defer close(f.stopped)
		defer r.Close()
		f.serve(int32(r.Fd()))
	}()
	t.Cleanup(func() {
		f.hang()
		unix.Close(dev) // ends all requests
		must(t, unix.Unmount(f.path, unix.MNT_DETACH))
	})
	return f
}

// hang returns when no request will be answered any more.
func (f *hangingFolder) hang() {
	f.stop.Close()
	<-f.stopped
}

// serve answers the requests that are described in linux/fuse.h. A request that has been read cannot be interrupted, so it reads none
// that it will not answer.
func (f *hangingFolder) serve(stop int32) {
	buf := make([]byte, 1<<17)
	for {
		fds := []unix.PollFd{{Fd: stop, Events: unix.POLLIN}, {Fd: int32(f.dev), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) || fds[0].Revents != 0 {
			return
		}
		if fds[1].Revents == 0 {
			continue
		}
		n, err := unix.Read(f.dev, buf)
		if err != nil || n < 40 {
			return
		}
		const lookup, forget, getattr, statfs, initialize, access, interrupt = 1, 2, 3, 17, 26, 34, 36
		var body []byte
		failed := unix.Errno(0)
		switch binary.NativeEndian.Uint32(buf[4:]) {
		case forget, interrupt:
			continue
		case initialize:
			body = make([]byte, 64)
			binary.NativeEndian.PutUint32(body[0:], 7)
			binary.NativeEndian.PutUint32(body[4:], 31)
			binary.NativeEndian.PutUint32(body[20:], 4096) // the largest write
		case getattr:
			body = make([]byte, 104) // valid for no time
			binary.NativeEndian.PutUint64(body[16:], 1)
			binary.NativeEndian.PutUint32(body[76:], unix.S_IFDIR|0o755)
			binary.NativeEndian.PutUint32(body[80:], 2)
		case statfs:
			body = make([]byte, 80)
		case access:
		case lookup:
			failed = unix.ENOENT
		default:
			failed = unix.ENOSYS
		}
		head := make([]byte, 16)
		binary.NativeEndian.PutUint32(head[0:], uint32(16+len(body)))
		binary.NativeEndian.PutUint32(head[4:], uint32(-int32(failed)))
		copy(head[8:], buf[8:16])
		_, _ = unix.Write(f.dev, append(head, body...))
	}
}
