package resources

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tracer lets the kernel write down every program executed and every sync asked for by some processes, and by whatever
// they start. It uses a trace instance of its own, through a mount that no path leads to.
type tracer struct {
	testing.TB
	mount    int
	instance string
}

// What is written down. A kernel without one of these has no such system call.
var traced = []string{
	"sched/sched_process_exec",
	"syscalls/sys_enter_fsync", "syscalls/sys_enter_fdatasync", "syscalls/sys_enter_syncfs", "syscalls/sys_enter_sync",
}

// newTracer skips the test where the kernel cannot trace.
func newTracer(t testing.TB) *tracer {
	t.Helper()
	fd, err := mountTracefs()
	if err != nil {
		t.Skipf("this kernel cannot count programs and syncs: tracefs: %v", err)
	}
	r := &tracer{TB: t, mount: fd}
	r.instance = fmt.Sprintf("/proc/self/fd/%d/instances/cribox-%d", fd, os.Getpid())
	if err := os.Mkdir(r.instance, 0o700); err != nil {
		unix.Close(fd)
		t.Skipf("this kernel cannot count programs and syncs: trace instance: %v", err)
	}
	t.Cleanup(r.close)
	for _, event := range traced {
		if _, err := os.Stat(filepath.Join(r.instance, "events", event)); err != nil {
			t.Skipf("this kernel cannot count programs and syncs: %v", err)
		}
	}
	return r
}

// mountTracefs returns a descriptor of a tracefs that is attached nowhere.
func mountTracefs() (int, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

func (r *tracer) close() {
	r.write("tracing_on", "0")
	for _, event := range traced {
		_ = os.WriteFile(filepath.Join(r.instance, "events", event, "enable"), []byte("0"), 0)
	}
	if err := os.Remove(r.instance); err != nil {
		r.Errorf("remove the trace instance: %v", err)
	}
	unix.Close(r.mount)
}

func (r *tracer) write(name, text string) {
	r.Helper()
	f, err := os.OpenFile(filepath.Join(r.instance, name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		r.Fatalf("trace: %v", err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		r.Fatalf("trace: write %s to %s: %v", text, name, err)
	}
}

// follow begins to count for these processes and all that they will start.
func (r *tracer) follow(pids ...int) {
	r.Helper()
	r.write("options/event-fork", "1")
	r.write("buffer_size_kb", "4096")
	r.write("tracing_on", "1")
	// Threads are followed one by one; one that starts while we look is followed because its parent is.
	for range 2 {
		for _, pid := range pids {
			threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			if err != nil {
				r.Fatal(err)
			}
			for _, thread := range threads {
				r.write("set_event_pid", thread.Name()+" ")
			}
		}
	}
	for _, event := range traced {
		r.write(filepath.Join("events", event, "enable"), "1")
	}
}

// counted is what was written down, in order.
type counted struct {
	programs []program
	syncs    []string
}

type program struct {
	pid  int
	path string
}

func (r *tracer) result() counted {
	r.Helper()
	r.write("tracing_on", "0")
	f, err := os.Open(filepath.Join(r.instance, "trace"))
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	var c counted
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			if strings.Contains(line, "LOST") {
				r.Fatalf("trace: events were lost: %s", line)
			}
			continue
		}
		if m := executed.FindStringSubmatch(line); m != nil {
			pid, _ := strconv.Atoi(m[2])
			c.programs = append(c.programs, program{pid: pid, path: m[1]})
		} else if strings.Contains(line, "sync(") || strings.Contains(line, "syncfs(") {
			c.syncs = append(c.syncs, strings.TrimSpace(line))
		}
	}
	if err := lines.Err(); err != nil {
		r.Fatal(err)
	}
	return c
}

var executed = regexp.MustCompile(`sched_process_exec: filename=(\S+) pid=(\d+)`)
