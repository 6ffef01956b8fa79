package streams

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestLogFormat(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Shell("echo one; echo two >&2; echo; printf 'no end'"))
	c.WaitExit()
	lines := c.FinalLog()
	// A line without an end is given as a partial one, so that nobody takes it for whole.
	var out []string
	for _, l := range lines {
		out = append(out, fmt.Sprintf("%s %t %s", l.Stream, l.Partial, l.Text))
	}
	stdout, stderr := []string{"stdout false one", "stdout false ", "stdout true no end"}, []string{"stderr false two"}
	if !inOrder(out, stdout) || !inOrder(out, stderr) {
		t.Errorf("log:\n%s", strings.Join(out, "\n"))
	}
	for i := 1; i < len(lines); i++ {
		if lines[i].At.Before(lines[i-1].At) {
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
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, size := range []int{100, 16<<10 - 1, 16 << 10, 16<<10 + 1, 100_000} {
		c := p.Run(d.Tool("print", "-lines", "3", "-size", fmt.Sprint(size)))
		c.WaitExit()
		lines := c.FinalLog()
		for _, l := range lines {
			if len(l.Text) > 16<<10 {
				t.Errorf("size %d: a line of %d bytes was not cut", size, len(l.Text))
			}
		}
		whole := strings.Split(strings.TrimSuffix(harness.TextOf(lines, "stdout"), "\n"), "\n")
		if len(whole) != 3 {
			t.Errorf("size %d: %d lines, want 3", size, len(whole))
		}
		for _, l := range whole {
			if len(l) != size {
				t.Errorf("size %d: a line of %d bytes", size, len(l))
			}
		}
		c.WantNumbers(lines, "stdout", 3)
	}
}

func TestLogOfManyLines(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("print", "-lines", "30000", "-size", "80", "-both", "-exit", "7"))
	if s := c.WaitExit(); s.ExitCode != 7 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	// Everything is in the file once the container is told to have exited.
	lines := c.FinalLog()
	c.WantNumbers(lines, "stdout", 30000)
	c.WantNumbers(lines, "stderr", 30000)
}

// TestRotation: rename, then ReopenContainerLog; no line is lost or doubled between the files.
func TestRotation(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "1ms", "-both"))
	c.WaitLog("000020")
	var files []string
	for i := range 5 {
		rotated := fmt.Sprintf("%s.%d", c.LogPath(), i)
		d.Must(os.Rename(c.LogPath(), rotated))
		c.Must(c.Reopen())
		if _, err := os.Stat(c.LogPath()); err != nil {
			t.Fatalf("after the call there is no new log: %v", err)
		}
		files = append(files, rotated)
	}
	c.Stop(0)
	var all strings.Builder
	for _, f := range append(files, c.LogPath()) {
		all.WriteString(harness.HostFile(t, f))
	}
	lines, err := harness.ParseLog(all.String())
	d.Must(err)
	c.WantNumbers(harness.DropUnfinished(lines), "stdout", -1)
	c.WantNumbers(harness.DropUnfinished(lines), "stderr", -1)

	err = c.Reopen()
	harness.WantCode(t, err, codes.FailedPrecondition, c.ID)
}

// TestReopenFails: a kubelet renames the old file back, so a failed call must not have made a new one.
func TestReopenFails(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "1ms"))
	c.WaitLog("000010")
	aside := p.Config.LogDirectory + ".aside"
	d.Must(os.Rename(p.Config.LogDirectory, aside))
	if err := c.Reopen(); err == nil {
		t.Error("the log's folder is gone, but the log was reopened")
	}
	if _, err := os.Stat(p.Config.LogDirectory); err == nil {
		t.Error("the failed call made a new folder")
	}
	d.Must(os.Rename(aside, p.Config.LogDirectory))
	d.Must(c.Reopen())
	c.Stop(0)
	c.WantNumbers(harness.DropUnfinished(c.FinalLog()), "stdout", -1)
}

// TestNoLogPath: nobody wants the output, but it must not block.
func TestNoLogPath(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("print", "-lines", "20000", "-size", "100", "-exit", "8"), harness.With(func(c *cri.ContainerConfig) { c.LogPath = "" }))
	if s := c.WaitExit(); s.ExitCode != 8 || s.LogPath != "" {
		t.Errorf("exit code %d, log path %q", s.ExitCode, s.LogPath)
	}
}

var leftOutLine = regexp.MustCompile(`^\[(\d+) bytes of output are left out here: `)

// leftOut takes the lines that count what a full log has left out from the others.
func leftOut(t testing.TB, lines []harness.LogLine) (missing int, others []harness.LogLine) {
	t.Helper()
	for _, l := range lines {
		m := leftOutLine.FindStringSubmatch(l.Text)
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
	d := harness.NewDaemon(t, harness.WithConfig("[containers]\nlog_size_max = '512Ki'\n"))
	p := d.RunPod()
	c := p.Run(harness.Shell(fmt.Sprintf("yes %s | head -n %d; touch /printed; until [ -e /go ]; do sleep 0.1; done; echo after", strings.Repeat("x", size-1), lines)))
	harness.Eventually(t, "the container to have printed", func() error {
		r, err := c.TryExec(30, "test", "-e", "/printed")
		return harness.Unless(err == nil && r.Code == 0, "%v, %v", r, err)
	})
	d.KillRole("logger")
	d.Restart()
	rotated := c.LogPath() + ".1"
	d.Must(os.Rename(c.LogPath(), rotated))
	d.Must(c.Reopen())
	c.Exec("touch", "/go")
	if s := c.WaitExit(); s.ExitCode != 0 {
		t.Errorf("exit code %d: %s", s.ExitCode, s.Message)
	}
	for _, file := range []string{rotated, c.LogPath()} {
		if got := len(harness.HostFile(t, file)); got > most {
			t.Errorf("%s has %d bytes, more than %d", file, got, most)
		}
	}
	all, err := harness.ParseLog(harness.HostFile(t, rotated) + harness.HostFile(t, c.LogPath()))
	d.Must(err)
	missing, others := leftOut(t, all)
	if have, want := len(harness.TextOf(others, "stdout"))+missing, lines*size+len("after\n"); have != want || missing == 0 {
		t.Errorf("%d bytes are there or counted (%d), %d were printed", have, missing, want)
	}
	if last := all[len(all)-1]; last.Text != "after" || last.Stream != "stdout" {
		t.Errorf("after the rotation the log should go on, but ends in %q", last.Text)
	}
}
