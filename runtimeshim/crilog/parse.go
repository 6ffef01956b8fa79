package crilog

import (
	"bytes"
	"fmt"
	"time"
)

// Parse returns the bytes of each stream in a log, or an error if the log is malformed.
func Parse(raw []byte) (streams [2][]byte, err error) {
	if len(raw) > 0 && raw[len(raw)-1] != '\n' {
		return streams, fmt.Errorf("ends within a line: %.200q", raw[max(0, len(raw)-200):])
	}
	for line := range bytes.Lines(raw) {
		if len(line) < prefixLen+1 || len(line) > MaxLine {
			return streams, fmt.Errorf("line of %d bytes: %.200q", len(line), line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(line[:len(timeFormat)])); err != nil {
			return streams, fmt.Errorf("%w: %.200q", err, line)
		}
		content := line[prefixLen : len(line)-1]
		i := 0
		switch string(line[len(timeFormat):tagAt]) {
		case " stdout ":
		case " stderr ":
			i = 1
		default:
			return streams, fmt.Errorf("stream: %.200q", line)
		}
		streams[i] = append(streams[i], content...)
		switch string(line[tagAt:prefixLen]) {
		case "F ":
			streams[i] = append(streams[i], '\n')
		case "P ":
		default:
			return streams, fmt.Errorf("tag: %.200q", line)
		}
	}
	return streams, nil
}
