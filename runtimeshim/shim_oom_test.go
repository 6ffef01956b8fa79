package runtimeshim

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel writes, of both versions, and what is read of it.
func TestOOMKills(t *testing.T) {
	dir := t.TempDir()
	for name, row := range map[string]struct {
		text string
		want uint64
	}{
		"v1":                 {"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3},
		"v1, none":           {"oom_kill_disable 0\nunder_oom 1\noom_kill 0\n", 0},
		"v1 of old kernels":  {"oom_kill_disable 0\nunder_oom 0\n", 0},
		"v2":                 {"low 0\nhigh 7\nmax 51\noom 4\noom_kill 2\noom_group_kill 0\nsock_throttled 9\n", 2},
		"v2, limit hit only": {"low 0\nhigh 0\nmax 51\noom 4\noom_kill 0\noom_group_kill 0\n", 0},
		"v2, whole group":    {"low 0\nhigh 0\nmax 1\noom 1\noom_kill 12\noom_group_kill 1\n", 12},
		"v2 of old kernels":  {"low 0\nhigh 0\nmax 1\noom 1\noom_kill 1\n", 1},
		"empty":              {"", 0},
		"nonsense":           {"oom_kill many\n", 0},
	} {
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := oomKills(file); got != row.want || err != nil {
			t.Errorf("%s: %d (%v), want %d", name, got, err, row.want)
		}
	}
	for _, name := range []string{filepath.Join(dir, "missing"), ""} {
		if n, err := oomKills(name); n != 0 || err != nil {
			t.Errorf("a cgroup that is gone has counted %d (%v)", n, err)
		}
	}
	if n, err := oomKills(dir); err == nil {
		t.Errorf("a counter that cannot be read is %d", n)
	}
}

// TestUnreadableOOMCounter has no descriptor left for a moment when a task ends: a kill by the kernel is told all the same.
func TestUnreadableOOMCounter(t *testing.T) {
	w, err := newCounterWatch(parseOOMKills)
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	w.readFile = func(string) ([]byte, error) {
		if looks++; looks < 3 {
			return nil, unix.EMFILE
		}
		return []byte("oom_kill 1\n"), nil
	}
	s := partsOf("/x")
	s.reporter.kills = w
	task := newTask(taskDir(t.TempDir()), taskRecord{taskParams: taskParams{OOMFile: "/sys/fs/cgroup/x/memory.oom_control"}})
	s.reporter.ended(task, exitRecord{Code: 137, Known: true})
	if task.exit == nil || !task.exit.OOM {
		t.Errorf("the end is told as %+v, want a kill by the kernel", task.exit)
	}
}

// A kill of ours forgives what the kernel did before, for a shim that comes later too; not when the kernel has just hit the task itself.
func TestMarkOOM(t *testing.T) {
	s := partsOf("/x")
	for name, row := range map[string]struct {
		before bool // it gets a SIGKILL that is not ours
		want   uint64
	}{"alive": {false, 5}, "hit": {true, 2}} {
		child := newChild(t)
		d := taskDir(t.TempDir())
		file := d.at("events")
		if err := os.WriteFile(file, []byte("oom_kill 5\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if row.before {
			if err := unix.Kill(child, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		pidfd, err := openPidfd(child)
		if err != nil {
			t.Fatal(err)
		}
		defer pidfd.Close()
		task := newTask(d, taskRecord{taskParams: taskParams{OOMFile: file}, OOMBase: 2})
		task.pidfd = pidfd
		s.reporter.markOOM(task)
		next, err := oomBase(taskRecord{OOMBase: 2}, d)
		if err != nil || task.rec.OOMBase != row.want || next != row.want {
			t.Errorf("%s: the count begins at %d, and for the next shim at %d (%v); want %d", name, task.rec.OOMBase, next, err, row.want)
		}
	}
}

// newChild starts a process that waits, and is not reaped before the end of the test.
func newChild(t *testing.T) int {
	t.Helper()
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "1d"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p.Pid
}
