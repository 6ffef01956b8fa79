package client

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/logger"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/shim"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// TestMain makes the test binary behave like cribox when it is executed as shim or logger, and like
// systemd when it is executed as busctl.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "busctl" {
		if err := busctlMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 4 && os.Args[2] == "--state" {
		var err error
		if d, bad := time.ParseDuration(os.Getenv("CRIBOX_TEST_RUNTIME_WAIT")); bad == nil {
			wire.StartWait = d
		}
		if name := os.Getenv("CRIBOX_TEST_INIT_NAME"); name != "" {
			procfd.InitName = name
		}
		switch os.Args[1] {
		case "shim":
			err = shim.Main(context.Background(), os.Args[3], testStep())
		case "logger":
			if d, bad := time.ParseDuration(os.Getenv("CRIBOX_TEST_TAP_PATIENCE")); bad == nil {
				logger.TapPatience = d
			}
			if build := os.Getenv("CRIBOX_TEST_BUILD"); build != "" {
				helper.OwnBuild = func() string { return build }
			}
			err = logger.Main(context.Background(), os.Args[3], testStep())
		case "daemon":
			err = daemonMain(os.Args[3])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	connectWait, quickLimit = testWait, testWait // so that no test fails on a slow machine
	os.Exit(m.Run())
}

// testStep returns a function that kills this process at the step CRIBOX_TEST_KILL_AT, once per
// state folder; a file records that it has happened.
func testStep() func(string) {
	at, done := os.Getenv("CRIBOX_TEST_KILL_AT"), filepath.Join(os.Args[3], "killed-at-step")
	return func(name string) {
		if name != at || at == "" {
			return
		}
		if f, err := os.OpenFile(done, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			f.Close()
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}

// host is one state folder with its shim, its logger and a client.
type host struct {
	t      *testing.T
	runc   string
	state  string
	rootfs string
	logs   string
	cgroup string // parent of the tasks' cgroups
	client *Client

	mu    sync.Mutex
	exits map[string][]runtimeshim.Task
	seen  chan struct{} // closed and replaced at every exit
}

// testWait: for events that must come; a test that waits this long has failed.
const testWait = 60 * time.Second

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "crb")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, runc: findRunc(t), state: filepath.Join(dir, "s"), rootfs: testRootfs(t), logs: filepath.Join(dir, "logs"),
		cgroup: "/cribox-test-" + filepath.Base(dir), exits: map[string][]runtimeshim.Task{}, seen: make(chan struct{})}
	os.Mkdir(h.logs, 0o755)
	t.Cleanup(func() { h.destroy(dir) })
	h.connect()
	return h
}

// findRunc looks for the real runtime: $CRIBOX_BIN, ../../bin, PATH.
func findRunc(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("CRIBOX_BIN"), "../../bin"} {
		if p, err := filepath.Abs(filepath.Join(dir, "runc")); err == nil && dir != "" {
			if _, err := os.Stat(p); err == nil {
				return p
			}
		}
	}
	if p, err := exec.LookPath("runc"); err == nil {
		return p
	}
	t.Skip("no runc in $CRIBOX_BIN or ../../bin")
	return ""
}

// testRootfs makes, once, a root filesystem with a static busybox.
var testRootfs = func() func(t *testing.T) string {
	var once sync.Once
	dir := filepath.Join(os.TempDir(), "cribox-test-rootfs")
	return func(t *testing.T) string {
		t.Helper()
		busybox, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Skip("no static /bin/busybox")
		}
		once.Do(func() {
			for _, d := range []string{"bin", "proc", "dev", "sys", "tmp", "etc"} {
				os.MkdirAll(filepath.Join(dir, d), 0o755)
			}
			tmp := filepath.Join(dir, "bin", fmt.Sprintf(".busybox%d", os.Getpid()))
			os.WriteFile(tmp, busybox, 0o755)
			os.Rename(tmp, filepath.Join(dir, "bin/busybox"))
			for _, name := range []string{"sh", "sleep", "cat", "echo", "true", "head", "stty", "seq", "yes", "setsid", "env", "ls", "tr"} {
				os.Symlink("busybox", filepath.Join(dir, "bin", name))
			}
		})
		return dir
	}
}()

func (h *host) connect() {
	h.t.Helper()
	c, err := h.tryConnect()
	if err != nil {
		h.t.Fatalf("connect: %v", err)
	}
	h.client = c
}

func (h *host) tryConnect() (*Client, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return Connect(context.Background(), Config{State: h.state, Executable: exe, OnExit: h.onExit})
}

func (h *host) onExit(t runtimeshim.Task) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.exits[t.ID] = append(h.exits[t.ID], t)
	close(h.seen)
	h.seen = make(chan struct{})
}

// destroy removes everything the test has made, and fails the test if this package left anything.
func (h *host) destroy(dir string) {
	if h.client == nil || h.client.ctx.Err() != nil {
		if c, err := h.tryConnect(); err == nil {
			h.client = c
		} else {
			h.t.Errorf("connect for the end: %v", err)
		}
	}
	if h.client != nil {
		tasks, err := h.client.Tasks(context.Background())
		if err != nil {
			h.t.Errorf("tasks: %v", err)
		}
		for _, t := range tasks {
			if err := h.client.Delete(context.Background(), t.ID); err != nil {
				h.t.Errorf("delete %s: %v", t.ID, err)
			}
		}
		if err := h.client.Shutdown(context.Background()); err != nil {
			h.t.Errorf("shutdown: %v", err)
		}
	}
	h.wantNothingLeft()
	for _, name := range []string{"shim.log", "logger.log"} {
		raw, _ := os.ReadFile(filepath.Join(h.state, name))
		if text := string(raw); strings.Contains(text, "DATA RACE") || strings.Contains(text, "goroutine ") {
			h.t.Errorf("%s: %s", name, text)
		}
	}
	if h.t.Failed() {
		for _, name := range []string{"shim.log", "logger.log"} {
			if text := logText(filepath.Join(h.state, name)); text != "" {
				h.t.Logf("%s: %s", name, text)
			}
		}
	}
	os.RemoveAll(dir)
}

// wantNothingLeft checks that no process, cgroup, runtime state or task folder is left.
func (h *host) wantNothingLeft() {
	h.t.Helper()
	for _, m := range cgroup.Mounts() {
		dir := filepath.Join(m.Mount, h.cgroup)
		for _, pid := range cgroup.Procs(dir) {
			h.t.Errorf("process %d is left in %s", pid, dir)
		}
		left, _ := filepath.Glob(dir + "/*/cgroup.procs")
		if len(left) > 0 {
			h.t.Errorf("cgroups are left: %v", left)
		}
		if err := cgroup.RemoveEmpty(dir); err != nil {
			h.t.Errorf("remove %s: %v", dir, err)
		}
	}
	for _, name := range []string{"runc", "shim"} {
		if left, _ := os.ReadDir(filepath.Join(h.state, name)); len(left) > 0 {
			h.t.Errorf("%s/%s has %v", h.state, name, left)
		}
	}
	left := h.processes()
	for deadline := time.Now().Add(testWait); len(left) > 0 && time.Now().Before(deadline); left = h.processes() {
		time.Sleep(5 * time.Millisecond) // the lock is released shortly before the process is gone
	}
	if len(left) > 0 {
		h.t.Errorf("processes are left: %q", left)
	}
}

// processes lists the command lines that contain the state folder.
func (h *host) processes() []string {
	var found []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range procs {
		if raw, _ := os.ReadFile(name); strings.Contains(string(raw), h.state+"\x00") || strings.Contains(string(raw), h.state+"/") {
			found = append(found, string(raw))
		}
	}
	return found
}

// specOption changes an OCI spec before it is written.
type specOption func(spec map[string]any)

func (h *host) spec(id string, args []string, opts ...specOption) []byte {
	spec := map[string]any{
		"ociVersion": "1.2.0",
		"process": map[string]any{
			"args": args, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}, "oomScoreAdj": 100,
		},
		"root":     map[string]any{"path": h.rootfs, "readonly": true},
		"hostname": "x",
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		"linux": map[string]any{
			"cgroupsPath": h.cgroup + "/" + id,
			"namespaces":  []map[string]any{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}},
		},
	}
	for _, o := range opts {
		o(spec)
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

func withTerminal(spec map[string]any) { spec["process"].(map[string]any)["terminal"] = true }

// inPidNamespaceOf joins the pid namespace of a process.
func inPidNamespaceOf(pid int) specOption {
	return func(spec map[string]any) {
		ns := spec["linux"].(map[string]any)["namespaces"].([]map[string]any)
		ns[0]["path"] = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
}

func (h *host) log(id string) string { return filepath.Join(h.logs, id+".log") }

// params returns a Start for a task that executes args.
func (h *host) params(id string, args []string, opts ...specOption) runtimeshim.Start {
	return runtimeshim.Start{ID: id, Runtime: h.runc, Spec: h.spec(id, args, opts...), LogPath: h.log(id),
		OOMFile: filepath.Join("/sys/fs/cgroup/memory", h.cgroup, id, "memory.oom_control")}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func (h *host) start(st runtimeshim.Start) runtimeshim.Task {
	h.t.Helper()
	t, err := h.client.Start(context.Background(), st)
	if err != nil {
		h.t.Fatalf("start %s: %v", st.ID, err)
	}
	return t
}

// pod starts a pod task with a keeper socket.
func (h *host) pod(id string) runtimeshim.Task {
	h.t.Helper()
	st := h.params(id, []string{"/bin/sleep", "1000000"})
	st.Keeper, st.LogPath = true, ""
	return h.start(st)
}

func (h *host) waitExit(id string) runtimeshim.Exit {
	h.t.Helper()
	return *h.waitExits(id, 1)[0].Exit
}

func (h *host) waitExits(id string, n int) []runtimeshim.Task {
	h.t.Helper()
	deadline := time.After(testWait)
	for {
		h.mu.Lock()
		got, seen := h.exits[id], h.seen
		h.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-seen:
		case <-deadline:
			h.t.Fatalf("no exit of %s", id)
		}
	}
}

func (h *host) wantExit(id string, code int32) {
	h.t.Helper()
	if e := h.waitExit(id); e.Code != code || !e.Known {
		h.t.Errorf("exit of %s is %+v, want code %d", id, e, code)
	}
}

func (h *host) task(id string) runtimeshim.Task {
	h.t.Helper()
	t, err := h.client.Task(context.Background(), id)
	if err != nil && !errdefs.IsNotFound(err) {
		h.t.Fatalf("task %s: %v", id, err)
	}
	return t
}

// logLines returns the lines of a CRI log, without tags and times.
func (h *host) logLines(id string) []string {
	h.t.Helper()
	raw, err := os.ReadFile(h.log(id))
	if err != nil {
		h.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) == 4 {
			lines = append(lines, f[3])
		}
	}
	return lines
}

// wantCounted checks that the log of id has the lines 1..n, each once, in order.
func (h *host) wantCounted(id string, n int) {
	h.t.Helper()
	lines := h.logLines(id)
	for i := 0; i < max(n, len(lines)); i++ {
		if i >= len(lines) || i >= n || lines[i] != strconv.Itoa(i+1) {
			h.t.Errorf("log of %s has %d lines, want %d; line %d is wrong", id, len(lines), n, i+1)
			return
		}
	}
}

// eventually polls until ok, for conditions without an event.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(testWait); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("never happened: %s", what)
		}
	}
}

// lockPid returns the pid in shim.lock or logger.lock.
func (h *host) lockPid(name string) int {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.state, name))
	if err != nil {
		h.t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	if pid <= 1 {
		h.t.Fatalf("%s says %q", name, raw)
	}
	return pid
}

// kill9 kills the shim ("shim.lock") or the logger and waits until it is dead.
func (h *host) kill9(lock string) {
	h.t.Helper()
	dead := h.deathOf(lock)
	_ = unix.Kill(h.lockPid(lock), unix.SIGKILL)
	dead()
}

// deathOf returns a function that waits until the process that holds the lock now is dead.
func (h *host) deathOf(lock string) (wait func()) {
	h.t.Helper()
	pid := h.lockPid(lock)
	f, err := procfd.Open(pid)
	if err != nil {
		h.t.Fatalf("%s %d: %v", lock, pid, err)
	}
	return func() {
		h.t.Helper()
		defer f.Close()
		if err := procfd.WaitDead(context.Background(), f); err != nil {
			h.t.Fatal(err)
		}
	}
}
