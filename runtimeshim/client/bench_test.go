package client

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkIdle measures how often shim and logger wake up when nothing happens.
func BenchmarkIdle(b *testing.B) {
	dir, err := os.MkdirTemp("", "crb")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, err := Connect(context.Background(), Config{State: filepath.Join(dir, "s"), Executable: "/proc/self/exe"})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Shutdown(context.Background())
	for b.Loop() {
		for _, role := range []string{"shim", "logger"} {
			raw, _ := os.ReadFile(filepath.Join(dir, "s", role+".lock"))
			pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
			if err != nil {
				b.Fatal(err)
			}
			const interval = 20 * time.Second
			before := wakeUps(b, pid)
			time.Sleep(interval)
			b.ReportMetric(float64(wakeUps(b, pid)-before)/interval.Seconds(), role+"-switches/s")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// wakeUps returns the number of voluntary context switches of a process.
func wakeUps(b *testing.B, pid int) (n int) {
	b.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, name := range files {
		raw, _ := os.ReadFile(name)
		for line := range strings.Lines(string(raw)) {
			if rest, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				one, _ := strconv.Atoi(strings.TrimSpace(rest))
				n += one
			}
		}
	}
	return n
}
