package logger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
)

var loggerSteps = []string{
	"logger.spliced", "logger.intent", "logger.written", "logger.committed",
	"spool.truncated", "spool.reset", "spool.punched",
}

// printing is a running container that prints without end.
type printing struct {
	cmd  *exec.Cmd
	in   io.Closer
	out  bytes.Buffer
	node *node
}

func (n *node) startPrinter() *printing {
	n.t.Helper()
	p := &printing{cmd: exec.Command("/proc/self/exe"), node: n}
	p.cmd.Env = append(os.Environ(), "CRIBOX_TEST_PRINTER="+string(n.state.Task("c")))
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	in, err := p.cmd.StdinPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	p.in = in
	n.t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

// stop ends the container and returns what each stream has printed. A logger must be reading.
func (p *printing) stop() (stdout, stderr string) {
	p.node.t.Helper()
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.node.t.Fatal(err, p.out.String())
	}
	var lines [2]int
	if _, err := fmt.Sscan(p.out.String(), &lines[1], &lines[0]); err != nil {
		p.node.t.Fatal(err)
	}
	var text [2]strings.Builder
	for i := range text {
		for o := newOutput(int64(i)); o.n < lines[i]; {
			text[i].Write(o.line())
		}
	}
	return text[0].String(), text[1].String()
}

// TestLoggerKilledAnytime: whenever the logger is killed, every line is in the log once.
func TestLoggerKilledAnytime(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	p := n.startPrinter()
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	for range killCount(60) {
		before := logSize(n.log)
		waitFor(t, "growth of the log", func() bool { return logSize(n.log) != before })
		time.Sleep(time.Duration(random.Intn(20_000)) * time.Microsecond) // at any instant
		n.restartLogger()
	}
	stdout, stderr := p.stop()
	n.must("finish")
	t.Logf("%d MB in %d kills", (len(stdout)+len(stderr))>>20, killCount(60))
	n.wantLogs(stdout, stderr)
}

func killCount(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

func logSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

func TestLoggerKilledAtSteps(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	p := n.startPrinter()
	for _, step := range loggerSteps {
		for _, count := range []int{1, 2, 5} {
			n.stopLogger()
			n.startLogger(fmt.Sprintf("%s:%d", step, count))
			n.waitKilled(step)
		}
	}
	n.restartLogger()
	stdout, stderr := p.stop()
	n.must("finish")
	n.wantLogs(stdout, stderr)
}

func (n *node) waitKilled(step string) {
	n.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(60 * time.Second):
		n.t.Fatalf("logger did not pass %s", step)
	}
	n.stopLogger()
}

// TestLoggerKilledInFinish: the caller repeats the request, and the last lines are in the log once.
func TestLoggerKilledInFinish(t *testing.T) {
	for _, step := range []string{"logger.spliced", "logger.intent", "logger.written", "logger.drained", "logger.done"} {
		t.Run(step, func(t *testing.T) {
			n := newNode(t)
			n.startLogger("")
			n.must("open")
			n.print(0, "a\n")
			n.waitLog(n.log, "a")
			n.stopLogger()
			n.print(0, "b\nno end")
			n.print(1, "c\n")
			n.startLogger(step + ":1")
			n.must("finish")
			n.wantLogs("a\nb\nno end", "c\n")
		})
	}
}

// TestLoggerRotationKilled: renames, reopens and kills lose nothing. Sometimes the test renames the
// log back, like the kubelet.
func TestLoggerRotationKilled(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	p := n.startPrinter()
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	steps := append([]string{"logger.created", "logger.reopened", "", "", ""}, loggerSteps...)
	var logs []string
	for i := range killCount(40) {
		before := logSize(n.log)
		waitFor(t, "growth of the log", func() bool {
			n.must("open") // starts another logger if a step has killed the last one
			return logSize(n.log) != before
		})
		old := filepath.Join(n.logs, fmt.Sprintf("0.log.%03d", i))
		n.stopLogger()
		if random.Intn(2) == 0 {
			n.startLogger(fmt.Sprintf("%s:%d", steps[i%len(steps)], 1+random.Intn(2)))
		}
		if err := os.Rename(n.log, old); err != nil {
			t.Fatal(err)
		}
		if n.logger == nil {
			n.startLogger(steps[i%len(steps)] + ":1")
		}
		if random.Intn(4) == 0 { // nobody has requested a reopen
			if err := os.Rename(old, n.log); err != nil {
				t.Fatal(err)
			}
			n.must("open")
			continue
		}
		logs = append(logs, old)
		n.must("reopen")
	}
	n.restartLogger()
	stdout, stderr := p.stop()
	n.must("finish")
	n.wantLogs(stdout, stderr, append(logs, n.log)...)
}

// TestLoggerDiskFull: the container blocks. When there is space again, no line is missing or
// duplicated.
func TestLoggerDiskFull(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			n := newNode(t)
			fillDisk(n)
			n.startLogger("")
			n.must("open")
			p := n.startPrinter()
			waitFor(t, "full disk", func() bool { return freeBlocks(t, n.logs) == 0 })
			for range 3 {
				if kill {
					n.restartLogger()
				}
				if err := unix.Mount("", n.logs, "", unix.MS_REMOUNT, fmt.Sprintf("size=%dk", 4*(usedKiB(t, n.logs)/4+101))); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "full disk", func() bool { return freeBlocks(t, n.logs) == 0 })
			}
			if err := unix.Mount("", n.logs, "", unix.MS_REMOUNT, "size=1g"); err != nil {
				t.Fatal(err)
			}
			stdout, stderr := p.stop()
			n.must("finish")
			n.wantLogs(stdout, stderr)
		})
	}
}

// TestLoggerRotatesFullDisk: a line that did not fit is in the next file, whole.
func TestLoggerRotatesFullDisk(t *testing.T) {
	n := newNode(t)
	fillDisk(n)
	n.startLogger("")
	n.must("open")
	p := n.startPrinter()
	waitFor(t, "full disk", func() bool { return freeBlocks(t, n.logs) == 0 })
	old := n.log + ".1"
	if err := os.Rename(n.log, old); err != nil {
		t.Fatal(err)
	}
	n.must("reopen")
	if err := unix.Mount("", n.logs, "", unix.MS_REMOUNT, "size=1g"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "growth of the log", func() bool { return logSize(n.log) > 0 })
	stdout, stderr := p.stop()
	n.must("finish")
	if raw, _ := os.ReadFile(old); len(raw) == 0 || raw[len(raw)-1] != '\n' {
		t.Errorf("the old log ends within a line")
	}
	n.wantLogs(stdout, stderr, old, n.log)
}

// fillDisk puts the logs on a file system of 1 MiB.
func fillDisk(n *node) {
	n.t.Helper()
	err := unix.Mount("logger-test", n.logs, "tmpfs", 0, "size=1m")
	if errors.Is(err, unix.EPERM) {
		n.t.Skip("needs the right to mount")
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { unix.Unmount(n.logs, unix.MNT_DETACH) })
}

func freeBlocks(t *testing.T, dir string) uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bfree
}

func usedKiB(t *testing.T, dir string) uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return (st.Blocks - st.Bfree) * uint64(st.Bsize) / 1024
}

// TestLoggerKilledAfterReset: the logger is killed after a spool was truncated and has grown beyond
// its old size.
func TestLoggerKilledAfterReset(t *testing.T) {
	n := newNode(t)
	if _, err := unix.FcntlInt(uintptr(n.fifos[0]), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		t.Skip("small FIFOs only:", err)
	}
	first, second := strings.Repeat("first\n", 20_000), strings.Repeat("second\n", 30_000)
	n.print(0, first)
	n.startLogger("logger.spliced:2")
	n.must("open")
	n.waitSpool(func(size, _ int64) bool { return size == 0 && logSize(n.log) > 0 })
	n.print(0, second)
	n.waitKilled("logger.spliced")
	n.startLogger("")
	n.must("finish")
	n.wantLogs(first+second, "")
}

func (n *node) waitSpool(done func(size, blocks int64) bool) {
	n.t.Helper()
	waitFor(n.t, "spool", func() bool {
		var st unix.Stat_t
		err := unix.Stat(n.state.Task("c").At("stdout.spool"), &st)
		return err == nil && done(st.Size, st.Blocks)
	})
}

// TestLoggerKilledAfterTruncation: somebody has truncated the log, and its content is no longer in
// the spool. The logger must not write it again from the hole.
func TestLoggerKilledAfterTruncation(t *testing.T) {
	n := newNode(t)
	n.startLogger("")
	n.must("open")
	line := strings.Repeat("x", 4095) + "\n"
	// No splice ends at the end of a line.
	n.print(0, "-"+strings.Repeat(line, crilog.PunchAt/len(line))+"end")
	n.waitSpool(func(size, blocks int64) bool { return size > crilog.PunchAt && blocks < size/512/4 })
	n.stopLogger()
	if err := os.Truncate(n.log, 0); err != nil {
		t.Fatal(err)
	}
	n.startLogger("")
	n.must("finish")
	raw, err := os.ReadFile(n.log)
	if err != nil || bytes.IndexByte(raw, 0) >= 0 || !bytes.HasSuffix(raw, []byte("stdout P end\n")) {
		t.Errorf("log: %.100q ... %v", raw, err)
	}
	if said, _ := os.ReadFile(n.stderr.Name()); len(said) > 0 {
		t.Errorf("logger: %s", said)
	}
}
