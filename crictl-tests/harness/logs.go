package harness

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// LogLine is one line of a CRI log.
type LogLine struct {
	At      time.Time
	Stream  string // stdout or stderr
	Partial bool
	Text    string
}

// ParseLog reads a CRI log file strictly: a line that is not in the format is an error.
func ParseLog(data string) ([]LogLine, error) {
	if data == "" {
		return nil, nil
	}
	if !strings.HasSuffix(data, "\n") {
		return nil, fmt.Errorf("the last line has no end: %q", data[strings.LastIndexByte(data, '\n')+1:])
	}
	var out []LogLine
	for n, line := range strings.Split(strings.TrimSuffix(data, "\n"), "\n") {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			return nil, fmt.Errorf("line %d is not TIME STREAM TAG TEXT: %.120q", n+1, line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		if fields[1] != "stdout" && fields[1] != "stderr" {
			return nil, fmt.Errorf("line %d: stream %q", n+1, fields[1])
		}
		if fields[2] != "P" && fields[2] != "F" {
			return nil, fmt.Errorf("line %d: tag %q", n+1, fields[2])
		}
		out = append(out, LogLine{At: at, Stream: fields[1], Partial: fields[2] == "P", Text: fields[3]})
	}
	return out, nil
}

// ReadLog returns the lines written so far.
func (c *Container) ReadLog() []LogLine {
	c.Helper()
	data, err := os.ReadFile(c.LogPath())
	c.Must(err)
	lines, err := ParseLog(string(data[:strings.LastIndexByte(string(data), '\n')+1]))
	c.Must(err)
	return lines
}

// FinalLog returns the lines of a container that has exited; a torn last line fails the test.
func (c *Container) FinalLog() []LogLine {
	c.Helper()
	data, err := os.ReadFile(c.LogPath())
	c.Must(err)
	lines, err := ParseLog(string(data))
	c.Must(err)
	return lines
}

// TextOf joins what one stream has printed, partial lines put together again.
func TextOf(lines []LogLine, stream string) string {
	var out strings.Builder
	for _, l := range lines {
		if l.Stream != stream {
			continue
		}
		out.WriteString(l.Text)
		if !l.Partial {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// WaitLog returns when the log holds the text.
func (c *Container) WaitLog(want string) {
	c.Helper()
	Eventually(c, fmt.Sprintf("%q in the log", want), func() error {
		got := TextOf(c.ReadLog(), "stdout")
		return Unless(strings.Contains(got, want), "it holds %.200q", got)
	})
}

// WantNumbers fails unless the lines on a stream are 1, 2, 3 … without a gap or a repetition; total
// < 0: any number of them.
func (c *Container) WantNumbers(lines []LogLine, stream string, total int) {
	c.Helper()
	printed := strings.Split(strings.TrimSuffix(TextOf(lines, stream), "\n"), "\n")
	if len(printed) == 1 && printed[0] == "" {
		printed = nil
	}
	for i, line := range printed {
		number, _, _ := strings.Cut(line, " ")
		if n, err := strconv.Atoi(number); err != nil || n != i+1 {
			c.Errorf("%s of %s: line %d says %.80q; a line was lost or doubled", stream, c.Config.Metadata.Name, i+1, line)
			return
		}
	}
	if total >= 0 && len(printed) != total {
		c.Errorf("%s of %s: %d lines, want %d", stream, c.Config.Metadata.Name, len(printed), total)
	}
}

// ManyLines is more than a test lasts, but not for ever: nobody may be there to stop the printer.
const ManyLines = "60000"

// DropUnfinished takes away the line that a killed container had begun.
func DropUnfinished(lines []LogLine) []LogLine {
	last := map[string]int{}
	for i, l := range lines {
		last[l.Stream] = i
	}
	var out []LogLine
	for i, l := range lines {
		if !l.Partial || last[l.Stream] != i {
			out = append(out, l)
		}
	}
	return out
}

// Reopen asks for the log to be opened anew, as after a rotation.
func (c *Container) Reopen() error {
	_, err := c.Runtime.ReopenContainerLog(context.Background(), &cri.ReopenContainerLogRequest{ContainerId: c.ID})
	return err
}
