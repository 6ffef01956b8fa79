package logger

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

func init() {
	if spec := os.Getenv("CRIBOX_TEST_FLOOD"); spec != "" {
		var size, total int
		var fifo string
		if _, err := fmt.Sscan(spec, &size, &total, &fifo); err != nil {
			panic(err)
		}
		flood(fifo, size, total)
		os.Exit(0)
	}
}

// flood writes total bytes of 80-byte lines, size bytes per write.
func flood(fifo string, size, total int) {
	fd, err := unix.Open(fifo, unix.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	chunk := bytes.Repeat(append(bytes.Repeat([]byte("x"), 79), '\n'), size/80)
	for total > 0 {
		if err := unixfd.WriteFull(fd, chunk[:min(total, len(chunk))]); err != nil {
			panic(err)
		}
		total -= len(chunk)
	}
}

// BenchmarkLogger: another process writes 80-byte lines to a FIFO, and a logger process writes them
// to a log. CPU is that of the logger alone.
func BenchmarkLogger(b *testing.B) {
	for _, where := range []struct{ name, state string }{{"tmp", ""}, {"shm", "/dev/shm"}} {
		for _, size := range []int{80, 4000, 64000} {
			b.Run(fmt.Sprintf("state=%s/write=%d", where.name, size), func(b *testing.B) {
				for b.Loop() {
					benchmarkLogger(b, where.state, size, 400_000_000)
				}
			})
		}
	}
}

func benchmarkLogger(b *testing.B, parent string, size, total int) {
	dir, err := os.MkdirTemp(parent, "logger")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	state, path := statedir.Root(dir), filepath.Join(b.TempDir(), "0.log")
	addTask(b, state, "c", path)
	openFIFO(b, state.Task("c").Stdout())
	logger := exec.Command("/proc/self/exe")
	logger.Env = append(os.Environ(), "CRIBOX_TEST_LOGGER="+dir)
	logger.Stderr = os.Stderr
	if err := logger.Start(); err != nil {
		b.Fatal(err)
	}
	defer logger.Wait()
	defer logger.Process.Kill()
	waitFor(b, "log", func() bool { _, err := os.Stat(path); return err == nil })
	before := cpu(b, logger.Process.Pid)
	begin := time.Now()
	writer := exec.Command("/proc/self/exe")
	writer.Env = append(os.Environ(), fmt.Sprintf("CRIBOX_TEST_FLOOD=%d %d %s", size, total, state.Task("c").Stdout()))
	if out, err := writer.CombinedOutput(); err != nil {
		b.Fatal(err, string(out))
	}
	if _, err := wire.Call(context.Background(), state.LoggerSock(), "finish", wire.LoggerTask{ID: "c"}, nil, nil); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begin).Seconds()
	used := cpu(b, logger.Process.Pid) - before
	if st, _ := os.Stat(path); st.Size() != int64(total/80*(80+len("2026-01-02T15:04:05.000000000Z stdout F "))) {
		b.Fatalf("log has %d bytes", st.Size())
	}
	os.Remove(path)
	b.ReportMetric(float64(total)/1e6/took, "MB/s")
	b.ReportMetric(used/(float64(total)/1e9), "cpu-s/GB")
	b.ReportMetric(writer.ProcessState.SystemTime().Seconds()/(float64(total)/1e9), "writer-sys-s/GB")
	b.ReportMetric(0, "ns/op")
}

// cpu returns the CPU time of a process in seconds.
func cpu(b *testing.B, pid int) float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { // the clock of another process
		b.Fatal(err)
	}
	return float64(ts.Sec) + float64(ts.Nsec)/1e9
}

func init() {
	if spec := os.Getenv("CRIBOX_TEST_DRIP"); spec != "" {
		var lines int
		var every time.Duration
		var pause, fifo string
		if _, err := fmt.Sscan(spec, &lines, &pause, &fifo); err != nil {
			panic(err)
		}
		every, _ = time.ParseDuration(pause)
		drip(fifo, lines, every)
		os.Exit(0)
	}
}

// drip writes single lines of 80 bytes with a pause after each.
func drip(fifo string, lines int, every time.Duration) {
	fd, err := unix.Open(fifo, unix.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	line := append(bytes.Repeat([]byte("x"), 79), '\n')
	for range lines {
		if err := unixfd.WriteFull(fd, line); err != nil {
			panic(err)
		}
		time.Sleep(every)
	}
}

// BenchmarkLoggerLines: a container prints single lines, as most do. CPU is that of the logger
// alone; each line causes at least one wake-up.
func BenchmarkLoggerLines(b *testing.B) {
	for _, every := range []string{"100ms", "5ms", "1ms"} {
		b.Run("every="+every, func(b *testing.B) {
			for b.Loop() {
				benchmarkLines(b, every)
			}
		})
	}
}

func benchmarkLines(b *testing.B, every string) {
	dir, err := os.MkdirTemp("", "logger")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	state, path := statedir.Root(dir), filepath.Join(b.TempDir(), "0.log")
	addTask(b, state, "c", path)
	openFIFO(b, state.Task("c").Stdout())
	logger := exec.Command("/proc/self/exe")
	logger.Env = append(os.Environ(), "CRIBOX_TEST_LOGGER="+dir)
	logger.Stderr = os.Stderr
	if err := logger.Start(); err != nil {
		b.Fatal(err)
	}
	defer logger.Wait()
	defer logger.Process.Kill()
	waitFor(b, "log", func() bool { _, err := os.Stat(path); return err == nil })
	pause, _ := time.ParseDuration(every)
	lines := int(3 * time.Second / pause)
	before, woken := cpu(b, logger.Process.Pid), wakeUps(b, logger.Process.Pid)
	writer := exec.Command("/proc/self/exe")
	writer.Env = append(os.Environ(), fmt.Sprintf("CRIBOX_TEST_DRIP=%d %s %s", lines, every, state.Task("c").Stdout()))
	if out, err := writer.CombinedOutput(); err != nil {
		b.Fatal(err, string(out))
	}
	used := cpu(b, logger.Process.Pid) - before
	b.ReportMetric(used/float64(lines)*1e3, "cpu-ms/line")
	b.ReportMetric(float64(wakeUps(b, logger.Process.Pid)-woken)/float64(lines), "switches/line")
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
