package crictltests

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// logLine is one line of a CRI log.
type logLine struct {
	at      time.Time
	stream  string // stdout or stderr
	partial bool
	text    string
}

// parseLog reads a CRI log file strictly: a line that is not in the format is an error.
func parseLog(data string) ([]logLine, error) {
	if data == "" {
		return nil, nil
	}
	if !strings.HasSuffix(data, "\n") {
		return nil, fmt.Errorf("the last line has no end: %q", data[strings.LastIndexByte(data, '\n')+1:])
	}
	var out []logLine
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
		out = append(out, logLine{at: at, stream: fields[1], partial: fields[2] == "P", text: fields[3]})
	}
	return out, nil
}

// readLog returns the lines written so far.
func (c *container) readLog() []logLine {
	c.Helper()
	data, err := os.ReadFile(c.logPath())
	c.must(err)
	lines, err := parseLog(string(data[:strings.LastIndexByte(string(data), '\n')+1]))
	c.must(err)
	return lines
}

// finalLog returns the lines of a container that has exited; a torn last line fails the test.
func (c *container) finalLog() []logLine {
	c.Helper()
	data, err := os.ReadFile(c.logPath())
	c.must(err)
	lines, err := parseLog(string(data))
	c.must(err)
	return lines
}

// text joins what one stream has printed, partial lines put together again.
func text(lines []logLine, stream string) string {
	var out strings.Builder
	for _, l := range lines {
		if l.stream != stream {
			continue
		}
		out.WriteString(l.text)
		if !l.partial {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// waitLog returns when the log holds the text.
func (c *container) waitLog(want string) {
	c.Helper()
	eventually(c, fmt.Sprintf("%q in the log", want), func() error {
		got := text(c.readLog(), "stdout")
		return unless(strings.Contains(got, want), "it holds %.200q", got)
	})
}

// wantNumbers fails unless the lines on a stream are 1, 2, 3 … without a gap or a repetition; total < 0: any number of them.
func (c *container) wantNumbers(lines []logLine, stream string, total int) {
	c.Helper()
	printed := strings.Split(strings.TrimSuffix(text(lines, stream), "\n"), "\n")
	if len(printed) == 1 && printed[0] == "" {
		printed = nil
	}
	for i, line := range printed {
		number, _, _ := strings.Cut(line, " ")
		if n, err := strconv.Atoi(number); err != nil || n != i+1 {
			c.Errorf("%s of %s: line %d says %.80q; a line was lost or doubled", stream, c.config.Metadata.Name, i+1, line)
			return
		}
	}
	if total >= 0 && len(printed) != total {
		c.Errorf("%s of %s: %d lines, want %d", stream, c.config.Metadata.Name, len(printed), total)
	}
}
