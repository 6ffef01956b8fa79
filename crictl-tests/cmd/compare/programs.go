package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// programs counts what the whole machine executes. The kernel's tracing is used for it, in a buffer
// of our own; where there is none, the counts are not a number.
type programs struct{ folder string }

const tracing = "/sys/kernel/tracing"

// tracePrograms begins to count. The mount ends with our namespace.
func tracePrograms() (programs, error) {
	if _, err := os.Stat(filepath.Join(tracing, "instances")); err != nil {
		if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil {
			return programs{}, nil //nolint:nilerr // a kernel without tracing
		}
	}
	p := programs{filepath.Join(tracing, "instances", fmt.Sprintf("compare-%d", os.Getppid()))}
	if err := os.Mkdir(p.folder, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return programs{}, err
	}
	return p, os.WriteFile(filepath.Join(p.folder, "events/sched/sched_process_exec/enable"), []byte("1"), 0o600)
}

// count is how many programs were executed since it was asked before.
func (p programs) count() float64 {
	file := filepath.Join(p.folder, "trace")
	text, err := os.ReadFile(file)
	if err != nil {
		return math.NaN()
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil { // which empties it
		return math.NaN()
	}
	return float64(bytes.Count(text, []byte("sched_process_exec:")))
}

// end gives the buffer back, which no namespace would.
func (p programs) end() {
	if p.folder != "" {
		_ = os.Remove(p.folder)
	}
}
