package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// TestOnlyReaperWaits: only the reaper waits for processes. Any other code that waits
// would take exit statuses from the reaper, and the reaper from it.
func TestOnlyReaperWaits(t *testing.T) {
	var files []string
	for _, folder := range []string{".", "../cgroup", "../helper", "../oci", "../procfd", "../statedir", "../unixfd"} {
		found, _ := filepath.Glob(folder + "/*.go")
		files = append(files, found...)
	}
	forbidden := regexp.MustCompile(`"os/exec"|os\.StartProcess|os\.FindProcess|\.Wait\(|Wait4\(|Waitid\(`)
	for _, name := range files {
		// features.go runs in the daemon.
		if strings.HasSuffix(name, "_test.go") || name == "../oci/features.go" {
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(raw), "\n") {
			allowed := name == "../procfd/reaper.go" && (strings.Contains(line, "unix.Wait4(-1, ") || strings.Contains(line, "unix.Waitid(unix.P_PIDFD, unixfd.Of(pidfd), nil, ask"))
			if code, _, _ := strings.Cut(line, "//"); forbidden.MatchString(code) && !allowed {
				t.Errorf("%s:%d: %s", name, i+1, line)
			}
		}
	}
}

// TestImportsAreLight: the shim runs on every node all the time, so its imports cost memory.
func TestImportsAreLight(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".", "../logger").Output()
	if err != nil {
		t.Skip("no go command")
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{"google.golang.org/", "k8s.io/", "net/http", "github.com/containerd/containerd/"} {
			if strings.HasPrefix(pkg, heavy) {
				t.Errorf("imports %s", pkg)
			}
		}
	}
}

func TestKeeper(t *testing.T) {
	// The path is longer than sun_path.
	d := statedir.Task(filepath.Join(t.TempDir(), strings.Repeat("a-long-name", 12)))
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		t.Fatal(err)
	}
	k, err := newKeeper(d)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	const n = 60
	var writers []*os.File
	var items []kept
	for i := range n {
		r, w, _ := os.Pipe()
		it := kept{keptHead: keptHead{ID: fmt.Sprint(i)}}
		it.add("pipe", r)
		items, writers = append(items, it), append(writers, w)
	}
	for range 3 {
		if err := k.keep(items); err != nil {
			t.Fatal(err)
		}
	}
	for _, it := range items {
		unixfd.CloseAll(it.files)
	}
	for i, w := range writers {
		if _, err := fmt.Fprint(w, i); err != nil {
			t.Fatal(err) // somebody still has the read end open
		}
	}
	again := &keeper{sock: k.sock, path: k.path}
	var seen []kept
	for range 2 { // recall must leave everything in place
		for _, it := range seen {
			unixfd.CloseAll(it.files)
		}
		seen = recalled(t, again)
		if len(seen) != n || again.queued != n {
			t.Fatalf("recalled %d of %d", len(seen), n)
		}
		for i, it := range seen {
			f := it.take("pipe")
			if it.ID != fmt.Sprint(i) || f == nil || it.take("tty") != nil {
				t.Fatalf("%+v", it)
			}
			seen[i].files = []*os.File{f}
		}
	}
	if err := again.keep(seen[:1]); err != nil {
		t.Fatal(err)
	}
	for _, it := range seen {
		buf := make([]byte, 8)
		n, _ := it.files[0].Read(buf)
		if string(buf[:n]) != it.ID {
			t.Errorf("read %q of %s", buf[:n], it.ID)
		}
		unixfd.CloseAll(it.files)
	}
	writers[0].WriteString("x")
	unix.Sendto(k.sock, []byte("junk"), 0, mustSockname(t, k))
	if got := recalled(t, again); len(got) != 1 || again.queued != 2 {
		t.Errorf("recalled %d of %d", len(got), again.queued)
	} else {
		unixfd.CloseAll(got[0].files)
	}
	if err := again.keep(nil); err != nil || len(recalled(t, again)) != 0 {
		t.Errorf("something is kept: %v", err)
	}
	if _, err := writers[0].WriteString("x"); err == nil {
		t.Error("a descriptor that is not kept is open")
	}
	unixfd.CloseAll(writers)
}

func recalled(t *testing.T, k *keeper) []kept {
	t.Helper()
	all, err := k.recall()
	must(t, err)
	return all
}

func mustSockname(t *testing.T, k *keeper) (a unix.Sockaddr) {
	t.Helper()
	if err := k.withAddr(func(addr unix.Sockaddr) error { a = addr; return nil }); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(filepath.Dir(k.path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dir) })
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(k.path))}
}

// partsOf returns the parts of a shim that does not serve.
func partsOf(state string) *shim {
	e := env{statedir.Root(state), func(string) {}}
	all, err := cgroup.NewFinder(e.state)
	if err != nil {
		panic(err)
	}
	return assemble(e, all, oci.NewDriver(e.state, false), nil)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTooManySessions opens the maximum number of sessions in a task: the next one fails until one
// has ended. The kubelet's execs in the task, and sessions of other tasks, still work.
func TestTooManySessions(t *testing.T) {
	s := partsOf("/x")
	full, other := newTask(statedir.Task(t.TempDir()), statedir.Record{State: runtimeshim.StateRunning}), newTask("/x/other", statedir.Record{})
	s.table.tasks["full"] = full
	var leave func()
	for range mostSessions {
		var err error
		if leave, err = s.table.enterSession(full); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // an exec below the limit fails with another error
	for session, refused := range map[bool]bool{true: true, false: false} {
		_, err := s.execs.exec(ctx, wire.NewInbound("exec", wire.Exec{ID: "full", Runtime: "/no/runtime", Session: session}))
		if err == nil || errdefs.IsResourceExhausted(err) != refused {
			t.Errorf("one more, session %v: %v", session, err)
		}
	}
	if _, err := s.table.enterSession(other); err != nil {
		t.Errorf("in another task: %v", err)
	}
	leave()
	if _, err := s.table.enterSession(full); err != nil {
		t.Errorf("when one has ended: %v", err)
	}
}

// TestHeedSignals: containers do not inherit that a signal is ignored.
func TestHeedSignals(t *testing.T) {
	ignored := func() string {
		raw, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(raw), "\nSigIgn:\t")
		mask, _, _ := strings.Cut(after, "\n")
		return mask
	}
	ignore := sigaction{handler: sigIgnore}
	const cancel = 32 // which the C library keeps for itself, and Go does not handle
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, cancel, uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	if mask := ignored(); len(mask) != 16 || mask[8] != '8' {
		t.Fatalf("signal 32 is not ignored before: %s", mask)
	}
	heedSignals()
	if mask := ignored(); mask != "0000000000000000" {
		t.Errorf("signals %s are ignored", mask)
	}
}

// TestAboutProgram: the error of a start ends in one class, and says what the runtime has said.
func TestAboutProgram(t *testing.T) {
	said := errors.New(`runc run: exec: "/none": stat /none: no such file or directory`)
	for _, c := range []struct{ err, want error }{
		{fmt.Errorf("%w: %w", said, errdefs.ErrNotFound), errdefs.ErrInvalidArgument},
		{fmt.Errorf("%w: %w", said, errdefs.ErrPermissionDenied), errdefs.ErrInvalidArgument},
		{fmt.Errorf("%w: %w", said, errdefs.ErrResourceExhausted), errdefs.ErrResourceExhausted},
	} {
		got := aboutProgram(c.err)
		if want := said.Error() + ": " + c.want.Error(); got.Error() != want || !errors.Is(got, c.want) {
			t.Errorf("%q becomes %q, want %q", c.err, got, want)
		}
	}
}
