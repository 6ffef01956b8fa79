package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

const (
	logLine  = 80
	logBulk  = 100_000_000 / logLine // lines
	logQuick = 1000                  // lines of the container that prints one at a time
)

// measureLogs has a container print as fast as it can, and another one line by line.
func (r *runtime) measureLogs(ctx context.Context) error {
	took, cpu, err := r.printed(ctx, logBulk, fmt.Sprintf("yes %0*d | head -n %d", logLine-1, 0, logBulk))
	if err != nil {
		return err
	}
	gigabytes := float64(logBulk*logLine) / 1e9
	r.figures.add(logBulkTime, took.Seconds()/gigabytes)
	r.figures.add(logBulkCPU, cpu.Seconds()/gigabytes)
	_, cpu, err = r.printed(ctx, logQuick,
		fmt.Sprintf("for i in $(seq %d); do echo a line of a container; usleep 4000; done", logQuick))
	if err != nil {
		return err
	}
	r.figures.add(logSingleCPU, milliseconds(cpu)/logQuick)
	return nil
}

// printed runs a script that prints so many lines, until it has ended and they are in the log. The
// processor time is that of the runtime alone, from the first line on.
func (r *runtime) printed(ctx context.Context, lines int, script string) (took, cpu time.Duration, err error) {
	p := r.newPod()
	p.command = []string{"sh", "-c", "until [ -e /go ]; do usleep 2000; done; " + script}
	if err := p.up(ctx); err != nil {
		return 0, 0, err
	}
	if err := p.run(ctx, "touch", "/go"); err != nil {
		return 0, 0, err
	}
	before, err := r.ownCPU()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := p.ended(ctx); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	after, err := r.ownCPU()
	if err != nil {
		return 0, 0, err
	}
	log := filepath.Join(p.config.LogDirectory, logName)
	if got, err := countLines(log); err != nil || got != lines {
		return 0, 0, errors.Join(fmt.Errorf("%s has %d lines, not %d", log, got, lines), err)
	}
	if err := p.down(ctx); err != nil {
		return 0, 0, err
	}
	return took, after - before, errors.Join(p.removeCgroup(), os.Remove(log))
}

func countLines(file string) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, part := 0, make([]byte, 1<<20)
	for {
		read, err := f.Read(part)
		n += bytes.Count(part[:read], []byte("\n"))
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
