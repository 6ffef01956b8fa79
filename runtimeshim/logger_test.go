package runtimeshim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The test binary is also the logger and the container.
func init() {
	if state := os.Getenv("CRIBOX_TEST_LOGGER"); state != "" {
		if err := LoggerMain(context.Background(), state, stepKiller(os.Getenv("CRIBOX_TEST_STEP"))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if spec := os.Getenv("CRIBOX_TEST_PRINTER"); spec != "" {
		printer(spec)
		os.Exit(0)
	}
}

// stepKiller ends the process at the n-th passage of a step, given as "name:n".
func stepKiller(spec string) func(string) {
	name, count, _ := strings.Cut(spec, ":")
	left, _ := strconv.Atoi(count)
	steps := make(chan int, 1)
	steps <- left
	return func(step string) {
		if step != name {
			return
		}
		left := <-steps - 1
		if left == 0 {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		steps <- left
	}
}

// output is a stream of lines that can be made again: numbered, of all lengths.
type output struct {
	random *rand.Rand
	n      int
	buf    []byte
}

func newOutput(seed int64) *output { return &output{random: rand.New(rand.NewSource(seed))} }

func (o *output) line() []byte {
	o.n++
	size := o.random.Intn(120)
	switch o.random.Intn(200) {
	case 0:
		size = maxPiece - 20 + o.random.Intn(40)
	case 1:
		size = o.random.Intn(4 * maxPiece)
	case 2, 3, 4:
		return append(o.buf[:0], '\n')
	}
	o.buf = strconv.AppendInt(o.buf[:0], int64(o.n), 10)
	for range size {
		o.buf = append(o.buf, 'a'+byte(len(o.buf)%26))
	}
	return append(o.buf, '\n')
}

// printer is the container: it holds its FIFOs open for reading and writing
// and prints until its stdin is closed, then tells how many lines there were.
func printer(dir string) {
	stop := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(stop) }()
	lines := make(chan int, 2)
	for i, name := range streamNames {
		fifo, err := unix.Open(filepath.Join(dir, name), unix.O_RDWR, 0)
		if err != nil {
			panic(err)
		}
		go func() {
			out, chunks := newOutput(int64(i)), rand.New(rand.NewSource(int64(i+9)))
			var buf []byte
			for {
				select {
				case <-stop:
					if err := writeFull(fifo, buf); err != nil {
						panic(err)
					}
					lines <- out.n
					return
				default:
				}
				size := 1 << chunks.Intn(16)
				for len(buf) < size {
					buf = append(buf, out.line()...)
				}
				if err := writeFull(fifo, buf[:size]); err != nil {
					panic(err)
				}
				buf = buf[:copy(buf, buf[size:])]
				if i == 1 {
					time.Sleep(time.Millisecond) // stderr is the quieter one
				}
			}
		}()
		defer func() { fmt.Println(<-lines) }()
	}
}

// node is a state folder with one task, "c", whose FIFOs the test holds open
// as the keeper of its pod does.
type node struct {
	t      *testing.T
	state  stateDir
	logs   string
	log    string
	fifos  [2]int
	logger *exec.Cmd
	exited chan struct{} // closed when it has
	stderr *os.File
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, state: stateDir(shortTempDir(t)), logs: t.TempDir()}
	n.log = filepath.Join(n.logs, "0.log")
	var err error
	if n.stderr, err = os.Create(filepath.Join(t.TempDir(), "stderr")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.stderr.Close() })
	n.addTask("c", n.log)
	for i, name := range streamNames {
		n.fifos[i] = openFIFO(t, n.state.task("c").at(name))
	}
	t.Cleanup(n.stopLogger)
	return n
}

// shortTempDir: a path of a socket has at most 107 bytes.
func shortTempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "logger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openFIFO(t testing.TB, path string) int {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func addTask(t testing.TB, state stateDir, id, path string) {
	dir := state.task(id)
	err := os.MkdirAll(string(dir), 0o700)
	for _, name := range streamNames {
		err = errors.Join(err, unix.Mkfifo(dir.at(name), 0o600))
	}
	if err = errors.Join(err, writeJSON(dir.log(), logRecord{Format: recordFormat, Path: path})); err != nil {
		t.Fatal(err)
	}
}

func (n *node) addTask(id, path string) { n.t.Helper(); addTask(n.t, n.state, id, path) }

// startLogger starts a logger that is killed at a step ("" = not).
func (n *node) startLogger(step string) {
	n.t.Helper()
	n.logger = exec.Command("/proc/self/exe")
	n.logger.Env = append(os.Environ(), "CRIBOX_TEST_LOGGER="+string(n.state), "CRIBOX_TEST_STEP="+step)
	n.logger.Stderr = n.stderr
	if err := n.logger.Start(); err != nil {
		n.t.Fatal(err)
	}
	cmd, exited := n.logger, make(chan struct{})
	n.exited = exited
	go func() { cmd.Wait(); close(exited) }()
}

func (n *node) stopLogger() {
	if n.logger != nil {
		n.logger.Process.Kill()
		<-n.exited
		n.logger = nil
	}
}

func (n *node) restartLogger() { n.t.Helper(); n.stopLogger(); n.startLogger("") }

// ask repeats a call until a logger has answered it. Whenever nobody does, it
// starts another one, which is what the client does.
func (n *node) ask(verb, id string) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := call(ctx, n.state.loggerSock(), verb, loggerTask{id}, nil, nil)
		if err == nil || !errors.Is(err, errNobody) && !errors.Is(err, errBroken) {
			return err
		}
		select {
		case <-n.exited:
			n.startLogger("")
		case <-time.After(time.Millisecond): // it is starting, or dying
		}
	}
}

func (n *node) must(verb string) {
	n.t.Helper()
	if err := n.ask(verb, "c"); err != nil {
		said, _ := os.ReadFile(n.stderr.Name())
		n.t.Fatalf("%s: %v\n%s", verb, err, said)
	}
}

func (n *node) print(stream int, text string) {
	n.t.Helper()
	if err := writeFull(n.fifos[stream], []byte(text)); err != nil {
		n.t.Fatal(err)
	}
}

// wantLogs compares what the logs, oldest first, hold of each stream.
func (n *node) wantLogs(stdout, stderr string, logs ...string) {
	n.t.Helper()
	if len(logs) == 0 {
		logs = []string{n.log}
	}
	var all []byte
	for _, path := range logs {
		raw, err := os.ReadFile(path)
		if err != nil {
			n.t.Fatal(err)
		}
		all = append(all, raw...)
	}
	got, err := parseCRI(all)
	if err != nil {
		n.t.Fatal(err)
	}
	for i, want := range []string{stdout, stderr} {
		if string(got[i]) != want {
			at := 0
			for at < min(len(got[i]), len(want)) && got[i][at] == want[at] {
				at++
			}
			n.t.Errorf("%s: %d bytes, want %d; differs at %d: %.80q, want %.80q",
				streamNames[i], len(got[i]), len(want), at, got[i][at:], want[at:])
		}
	}
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func (n *node) waitLog(path, text string) {
	n.t.Helper()
	waitFor(n.t, text+" in "+path, func() bool {
		raw, _ := os.ReadFile(path)
		return bytes.Contains(raw, []byte(text))
	})
}

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
	if left, _ := filepath.Glob(n.state.task("c").at("*.spool")); left != nil {
		t.Errorf("spools are left: %v", left)
	}
}

func TestLoggerAppends(t *testing.T) {
	n := newNode(t)
	before := string(format("before\n", false, 1<<10))
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
	fifo := openFIFO(t, n.state.task("quiet").stdout())
	n.startLogger("")
	if err := n.ask("open", "quiet"); err != nil {
		t.Fatal(err)
	}
	if err := writeFull(fifo, make([]byte, 4<<20)); err != nil { // returns: somebody reads
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
	if err := LoggerMain(t.Context(), string(n.state), nil); !errors.Is(err, errdefs.ErrAlreadyExists) ||
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
	n.must("reopen") // the same file: nothing happens
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
	n.must("reopen") // finished: the file appears all the same
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

// The kubelet renames back when reopen has failed for it; it may have
// succeeded for us.
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

// A folder of logs that was deleted does not stop the container, with or
// without a logger that has seen it.
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
	dir := n.state.task("tty")
	path := filepath.Join(n.logs, "tty.log")
	err := errors.Join(os.MkdirAll(string(dir), 0o700), unix.Mkfifo(dir.stdout(), 0o600),
		writeJSON(dir.log(), logRecord{Format: recordFormat, Path: path, Terminal: true}))
	if err != nil {
		t.Fatal(err)
	}
	n.startLogger("")
	if err := n.ask("open", "tty"); err != nil {
		t.Fatal(err)
	}
	if err := writeFull(openFIFO(t, dir.stdout()), []byte("$ ls\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := n.ask("finish", "tty"); err != nil {
		t.Fatal(err)
	}
	n.wantLogs("$ ls\r\n", "", path)
}

// The same id with another folder is another task.
func TestLoggerTaskReplaced(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	if err := os.RemoveAll(string(n.state.task("c"))); err != nil {
		t.Fatal(err)
	}
	n.addTask("c", n.log)
	n.fifos[0] = openFIFO(t, n.state.task("c").stdout())
	n.must("open")
	n.print(0, "new\n")
	n.must("finish")
	n.wantLogs("new\n", "")
}
