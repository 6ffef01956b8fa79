package crictltests

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogFormat(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(shell("echo one; echo two >&2; echo; printf 'no end'"))
	c.waitExit()
	lines := c.finalLog()
	// A line without an end is given as a partial one, so that nobody takes it for whole.
	var out []string
	for _, l := range lines {
		out = append(out, fmt.Sprintf("%s %t %s", l.stream, l.partial, l.text))
	}
	stdout, stderr := []string{"stdout false one", "stdout false ", "stdout true no end"}, []string{"stderr false two"}
	if !inOrder(out, stdout) || !inOrder(out, stderr) {
		t.Errorf("log:\n%s", strings.Join(out, "\n"))
	}
	for i := 1; i < len(lines); i++ {
		if lines[i].at.Before(lines[i-1].at) {
			t.Errorf("line %d is older than the one before", i+1)
		}
	}
}

// inOrder reports whether all wanted lines are there, in this order.
func inOrder(lines, want []string) bool {
	for _, l := range lines {
		if len(want) > 0 && l == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

// TestLongLines: a line over 16 KiB is cut into partial ones, and nothing is lost or added.
func TestLongLines(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	for _, size := range []int{100, 16<<10 - 1, 16 << 10, 16<<10 + 1, 100_000} {
		c := p.run(d.tool("print", "-lines", "3", "-size", fmt.Sprint(size)))
		c.waitExit()
		lines := c.finalLog()
		for _, l := range lines {
			if len(l.text) > 16<<10 {
				t.Errorf("size %d: a line of %d bytes was not cut", size, len(l.text))
			}
		}
		whole := strings.Split(strings.TrimSuffix(text(lines, "stdout"), "\n"), "\n")
		if len(whole) != 3 {
			t.Errorf("size %d: %d lines, want 3", size, len(whole))
		}
		for _, l := range whole {
			if len(l) != size {
				t.Errorf("size %d: a line of %d bytes", size, len(l))
			}
		}
		c.wantNumbers(lines, "stdout", 3)
	}
}

func TestLogOfManyLines(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("print", "-lines", "30000", "-size", "80", "-both", "-exit", "7"))
	if s := c.waitExit(); s.ExitCode != 7 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	// Everything is in the file once the container is told to have exited.
	lines := c.finalLog()
	c.wantNumbers(lines, "stdout", 30000)
	c.wantNumbers(lines, "stderr", 30000)
}

// TestRotation: rename, then ReopenContainerLog; no line is lost or doubled between the files.
func TestRotation(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("print", "-lines", manyLines, "-every", "1ms", "-both"))
	c.waitLog("000020")
	var files []string
	for i := range 5 {
		rotated := fmt.Sprintf("%s.%d", c.logPath(), i)
		d.must(os.Rename(c.logPath(), rotated))
		c.must(c.reopen())
		if _, err := os.Stat(c.logPath()); err != nil {
			t.Fatalf("after the call there is no new log: %v", err)
		}
		files = append(files, rotated)
	}
	c.stop(0)
	var all strings.Builder
	for _, f := range append(files, c.logPath()) {
		all.WriteString(hostFile(t, f))
	}
	lines, err := parseLog(all.String())
	d.must(err)
	c.wantNumbers(dropUnfinished(lines), "stdout", -1)
	c.wantNumbers(dropUnfinished(lines), "stderr", -1)

	err = c.reopen()
	wantCode(t, err, codes.FailedPrecondition, c.id)
}

// dropUnfinished takes away the line that a killed container had begun.
func dropUnfinished(lines []logLine) []logLine {
	last := map[string]int{}
	for i, l := range lines {
		last[l.stream] = i
	}
	var out []logLine
	for i, l := range lines {
		if !l.partial || last[l.stream] != i {
			out = append(out, l)
		}
	}
	return out
}

func (c *container) reopen() error {
	_, err := c.runtime.ReopenContainerLog(context.Background(), &cri.ReopenContainerLogRequest{ContainerId: c.id})
	return err
}

// TestReopenFails: a kubelet renames the old file back, so a failed call must not have made a new one.
func TestReopenFails(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(d.tool("print", "-lines", manyLines, "-every", "1ms"))
	c.waitLog("000010")
	aside := p.config.LogDirectory + ".aside"
	d.must(os.Rename(p.config.LogDirectory, aside))
	if err := c.reopen(); err == nil {
		t.Error("the log's folder is gone, but the log was reopened")
	}
	if _, err := os.Stat(p.config.LogDirectory); err == nil {
		t.Error("the failed call made a new folder")
	}
	d.must(os.Rename(aside, p.config.LogDirectory))
	d.must(c.reopen())
	c.stop(0)
	c.wantNumbers(dropUnfinished(c.finalLog()), "stdout", -1)
}

// TestNoLogPath: nobody wants the output, but it must not block.
func TestNoLogPath(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("print", "-lines", "20000", "-size", "100", "-exit", "8"), with(func(c *cri.ContainerConfig) { c.LogPath = "" }))
	if s := c.waitExit(); s.ExitCode != 8 || s.LogPath != "" {
		t.Errorf("exit code %d, log path %q", s.ExitCode, s.LogPath)
	}
}

var leftOutLine = regexp.MustCompile(`^\[(\d+) bytes of output are left out here: `)

// leftOut takes the lines that count what a full log has left out from the others.
func leftOut(t testing.TB, lines []logLine) (missing int, others []logLine) {
	t.Helper()
	for _, l := range lines {
		m := leftOutLine.FindStringSubmatch(l.text)
		if m == nil {
			others = append(others, l)
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		missing += n
	}
	return missing, others
}

// TestLogSizeMax: a container that prints more than its log may take until the next rotation fills no disk and does not wait; the log
// tells how much is missing, whatever was killed meanwhile.
func TestLogSizeMax(t *testing.T) {
	t.Parallel()
	const most, lines, size = 512 << 10, 30_000, 100
	d := newDaemon(t, withConfig("[containers]\nlog_size_max = '512Ki'\n"))
	p := d.runPod()
	c := p.run(shell(fmt.Sprintf("yes %s | head -n %d; touch /printed; until [ -e /go ]; do sleep 0.1; done; echo after", strings.Repeat("x", size-1), lines)))
	eventually(t, "the container to have printed", func() error {
		r, err := c.tryExec(30, "test", "-e", "/printed")
		return unless(err == nil && r.code == 0, "%v, %v", r, err)
	})
	d.killRole("logger")
	d.restart()
	rotated := c.logPath() + ".1"
	d.must(os.Rename(c.logPath(), rotated))
	d.must(c.reopen())
	c.exec("touch", "/go")
	if s := c.waitExit(); s.ExitCode != 0 {
		t.Errorf("exit code %d: %s", s.ExitCode, s.Message)
	}
	for _, file := range []string{rotated, c.logPath()} {
		if got := len(hostFile(t, file)); got > most {
			t.Errorf("%s has %d bytes, more than %d", file, got, most)
		}
	}
	all, err := parseLog(hostFile(t, rotated) + hostFile(t, c.logPath()))
	d.must(err)
	missing, others := leftOut(t, all)
	if have, want := len(text(others, "stdout"))+missing, lines*size+len("after\n"); have != want || missing == 0 {
		t.Errorf("%d bytes are there or counted (%d), %d were printed", have, missing, want)
	}
	if last := all[len(all)-1]; last.text != "after" || last.stream != "stdout" {
		t.Errorf("after the rotation the log should go on, but ends in %q", last.text)
	}
}
