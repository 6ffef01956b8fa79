package logger

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

func TestLoggerLife(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	if st, err := os.Stat(n.log); err != nil || st.Mode() != 0o640 {
		t.Fatalf("log after open: %v, %v", st, err)
	}
	n.must("open")
	n.print(0, "one\ntwo\n\nno end")
	n.print(1, "bad\x00\n")
	n.waitLog(n.log, "stdout F two")
	n.must("finish")
	n.wantLogs("one\ntwo\n\nno end", "bad\x00\n")
	n.must("finish")
	n.restartLogger()
	n.must("finish")
	n.must("open")
	n.wantLogs("one\ntwo\n\nno end", "bad\x00\n")
	if left, _ := filepath.Glob(n.state.Task("c").At("*.spool")); left != nil {
		t.Errorf("spools are left: %v", left)
	}
}

func TestLoggerAppends(t *testing.T) {
	n := newNode(t)
	before := "2026-01-02T02:04:05.000000006Z stdout F before\n"
	if err := os.WriteFile(n.log, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	n.startLogger("")
	n.print(0, "after\n")
	n.must("open")
	n.must("finish")
	n.wantLogs("before\nafter\n", "")
}

func TestLoggerRefuses(t *testing.T) {
	n := newNode(t)
	link := filepath.Join(n.logs, "link")
	fifo := filepath.Join(n.logs, "fifo")
	if err := errors.Join(os.Symlink(filepath.Join(n.logs, "target"), link), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	n.addTask("nofolder", filepath.Join(n.logs, "no", "0.log"))
	n.addTask("link", link)
	n.addTask("fifo", fifo)
	n.addTask("folder", n.logs)
	n.startLogger("")
	for id, want := range map[string]error{
		"nofolder": errdefs.ErrNotFound,
		"notask":   errdefs.ErrNotFound,
		"../c":     errdefs.ErrInvalidArgument,
		"link":     errdefs.ErrInvalidArgument,
		"fifo":     errdefs.ErrInvalidArgument,
		"folder":   errdefs.ErrInvalidArgument,
	} {
		for _, verb := range []string{"open", "reopen", "finish"} {
			if err := n.ask(verb, id); !errors.Is(err, want) {
				t.Errorf("%s %s: %v, want %v", verb, id, err, want)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(n.logs, "target")); err == nil {
		t.Error("log behind the link was made")
	}
}

func TestLoggerDropsWithoutPath(t *testing.T) {
	n := newNode(t)
	n.addTask("quiet", "")
	fifo := openFIFO(t, n.state.Task("quiet").Stdout())
	n.startLogger("")
	if err := n.ask("open", "quiet"); err != nil {
		t.Fatal(err)
	}
	// The write returns only if somebody reads.
	if err := unixfd.WriteFull(fifo, make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := n.ask("finish", "quiet"); err != nil {
		t.Fatal(err)
	}
}

func TestLoggerIsOne(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	if err := Main(t.Context(), string(n.state), nil); !errors.Is(err, errdefs.ErrAlreadyExists) ||
		!strings.Contains(err.Error(), strconv.Itoa(n.logger.Process.Pid)) {
		t.Fatalf("second logger: %v", err)
	}
	if err := n.ask("quit", "c"); err != nil {
		t.Fatal(err)
	}
	<-n.exited
	if !n.logger.ProcessState.Success() {
		t.Fatal(n.logger.ProcessState)
	}
	n.startLogger("")
	n.must("open")
}

func TestLoggerReopen(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	n.print(0, "first\n")
	n.waitLog(n.log, "first")
	old := n.log + ".1"
	if err := os.Rename(n.log, old); err != nil {
		t.Fatal(err)
	}
	n.print(0, "between\nhalf ")
	n.waitLog(old, "between")
	n.must("reopen")
	n.must("reopen") // the same file: has no effect
	n.print(0, "line\nlast\n")
	n.waitLog(n.log, "last")
	n.wantLogs("first\nbetween\n", "", old)
	n.wantLogs("half line\nlast\n", "", n.log)

	if err := os.Remove(n.log); err != nil {
		t.Fatal(err)
	}
	n.must("reopen")
	n.must("finish")
	n.wantLogs("", "")
	if err := os.Remove(n.log); err != nil {
		t.Fatal(err)
	}
	n.must("reopen") // the task is finished, but the file is created
	n.wantLogs("", "")
}

func TestLoggerReopenFails(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	away := n.logs + ".away"
	t.Cleanup(func() { os.RemoveAll(away) })
	if err := os.Rename(n.logs, away); err != nil {
		t.Fatal(err)
	}
	if err := n.ask("reopen", "c"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("reopen without folder: %v", err)
	}
	n.print(0, "goes on\n")
	n.waitLog(filepath.Join(away, "0.log"), "goes on")
}

// TestLoggerRotationUndone: the kubelet renames the log back when reopen failed from its view; the
// reopen may have succeeded here.
func TestLoggerRotationUndone(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	n.print(0, "one\n")
	n.waitLog(n.log, "one")
	old := n.log + ".1"
	if err := os.Rename(n.log, old); err != nil {
		t.Fatal(err)
	}
	n.must("reopen")
	n.print(0, "two\n")
	n.waitLog(n.log, "two")
	if err := os.Rename(old, n.log); err != nil {
		t.Fatal(err)
	}
	n.print(0, "three\n")
	n.waitLog(n.log, "three")
	n.wantLogs("one\ntwo\nthree\n", "")
}

// TestLoggerFolderDeleted: a deleted folder of logs does not block the container, whether or not a
// logger was running at the time.
func TestLoggerFolderDeleted(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	for range 2 {
		if err := os.RemoveAll(n.logs); err != nil {
			t.Fatal(err)
		}
		n.print(0, strings.Repeat("nobody reads this\n", 20000))
		n.restartLogger()
	}
	if err := os.Mkdir(n.logs, 0o700); err != nil {
		t.Fatal(err)
	}
	n.print(0, "again\n")
	n.must("finish")
	n.waitLog(n.log, "again")
}

func TestLoggerTerminal(t *testing.T) {
	n := newNode(t)
	dir := n.state.Task("tty")
	path := filepath.Join(n.logs, "tty.log")
	err := errors.Join(os.MkdirAll(string(dir), 0o700), unix.Mkfifo(dir.Stdout(), 0o600),
		statedir.WriteJSON(dir.Log(), statedir.LogRecord{Format: statedir.Format, Path: path, Terminal: true}))
	if err != nil {
		t.Fatal(err)
	}
	n.startLogger("")
	if err := n.ask("open", "tty"); err != nil {
		t.Fatal(err)
	}
	if err := unixfd.WriteFull(openFIFO(t, dir.Stdout()), []byte("$ ls\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := n.ask("finish", "tty"); err != nil {
		t.Fatal(err)
	}
	n.wantLogs("$ ls\r\n", "", path)
}

// TestLoggerEarlierStart: a request to finish an earlier start does not finish this one.
func TestLoggerEarlierStart(t *testing.T) {
	n := newNode(t)
	log := n.state.Task("c").Log()
	// Without this file the logger does not resume the task at its start.
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	n.startLogger("")
	n.must("version")
	if err := statedir.WriteJSON(log, statedir.LogRecord{Format: statedir.Format, Path: n.log, Start: 2}); err != nil {
		t.Fatal(err)
	}
	finish := func(start int64) error {
		_, err := wire.Call(t.Context(), n.state.LoggerSock(), "finish", wire.LoggerTask{ID: "c", Start: start}, nil, nil)
		return err
	}
	for range 2 { // before it is opened, and after
		if err := finish(1); !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		n.must("open")
		n.print(0, "line\n")
	}
	if err := finish(2); err != nil {
		t.Error(err)
	}
	n.wantLogs("line\nline\n", "")
}

// TestLoggerTaskReplaced: a new folder with the same id is another task.
func TestLoggerTaskReplaced(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	if err := os.RemoveAll(string(n.state.Task("c"))); err != nil {
		t.Fatal(err)
	}
	n.addTask("c", n.log)
	n.fifos[0] = openFIFO(t, n.state.Task("c").Stdout())
	n.must("open")
	n.print(0, "new\n")
	n.must("finish")
	n.wantLogs("new\n", "")
}
