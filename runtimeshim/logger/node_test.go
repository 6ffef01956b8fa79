package logger

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

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// The test binary also serves as the logger and as the container.
func init() {
	if state := os.Getenv("CRIBOX_TEST_LOGGER"); state != "" {
		if err := Main(context.Background(), state, stepKiller(os.Getenv("CRIBOX_TEST_STEP"))); err != nil {
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

// stepKiller returns a function that kills the process at the n-th call for a step, given as
// "name:n".
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

// output generates a reproducible stream of lines: numbered, of all lengths.
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
		size = crilog.MaxPiece - 20 + o.random.Intn(40)
	case 1:
		size = o.random.Intn(4 * crilog.MaxPiece)
	case 2, 3, 4:
		return append(o.buf[:0], '\n')
	}
	o.buf = strconv.AppendInt(o.buf[:0], int64(o.n), 10)
	for range size {
		o.buf = append(o.buf, 'a'+byte(len(o.buf)%26))
	}
	return append(o.buf, '\n')
}

// printer is the container: it holds its FIFOs open for reading and writing and prints until its
// stdin is closed. Then it prints the numbers of lines, stderr's first, because deferred calls run
// in reverse.
func printer(dir string) {
	stop := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(stop) }()
	for i, name := range crilog.StreamNames {
		lines := make(chan int, 1)
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
					if err := unixfd.WriteFull(fifo, buf); err != nil {
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
				if err := unixfd.WriteFull(fifo, buf[:size]); err != nil {
					panic(err)
				}
				buf = buf[:copy(buf, buf[size:])]
				if i == 1 {
					time.Sleep(time.Millisecond) // stderr prints less
				}
			}
		}()
		defer func() { fmt.Println(<-lines) }()
	}
}

// node is a state folder with one task, "c". The test holds its FIFOs open, as the keeper socket of
// a pod does.
type node struct {
	t      *testing.T
	state  statedir.Root
	logs   string
	log    string
	fifos  [2]int
	logger *exec.Cmd
	exited chan struct{} // closed when it has exited
	stderr *os.File
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, state: statedir.Root(shortTempDir(t)), logs: t.TempDir()}
	n.log = filepath.Join(n.logs, "0.log")
	var err error
	if n.stderr, err = os.Create(filepath.Join(t.TempDir(), "stderr")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.stderr.Close() })
	n.addTask("c", n.log)
	for i, name := range crilog.StreamNames {
		n.fifos[i] = openFIFO(t, n.state.Task("c").At(name))
	}
	t.Cleanup(n.stopLogger)
	return n
}

// shortTempDir returns a short folder, because the path of a socket has at most 107 bytes.
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

func addTask(t testing.TB, state statedir.Root, id, path string) {
	dir := state.Task(id)
	err := os.MkdirAll(string(dir), 0o700)
	for _, name := range crilog.StreamNames {
		err = errors.Join(err, unix.Mkfifo(dir.At(name), 0o600))
	}
	if err = errors.Join(err, statedir.WriteJSON(dir.Log(), statedir.LogRecord{Format: statedir.Format, Path: path})); err != nil {
		t.Fatal(err)
	}
}

func (n *node) addTask(id, path string) { n.t.Helper(); addTask(n.t, n.state, id, path) }

// startLogger starts a logger that is killed at a step ("" = never).
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

// ask repeats a call until a logger has answered it. If no logger is running, it starts one, as the
// client does.
func (n *node) ask(verb, id string) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := wire.Call(ctx, n.state.LoggerSock(), verb, wire.LoggerTask{ID: id}, nil, nil)
		if err == nil || !errors.Is(err, wire.ErrNobody) && !errors.Is(err, wire.ErrBroken) {
			return err
		}
		select {
		case <-n.exited:
			n.startLogger("")
		case <-time.After(time.Millisecond): // it is starting or dying
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
	if err := unixfd.WriteFull(n.fifos[stream], []byte(text)); err != nil {
		n.t.Fatal(err)
	}
}

// wantLogs compares the content of each stream in the logs, oldest log first.
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
	got, err := crilog.Parse(all)
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
				crilog.StreamNames[i], len(got[i]), len(want), at, got[i][at:], want[at:])
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
