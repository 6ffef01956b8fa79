package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const pictureName = "performance.svg"

// save writes the page and its picture.
func save(folder string, runtimes []*runtime, o options) error {
	var page, picture strings.Builder
	fmt.Fprintf(&page, `# Performance

Written by `+"`make compare`"+` on %s. [measurements.md](measurements.md) says how it measures, and has CRI-O beside it.

![cribox as a share of %s, by measure](%s)

`, time.Now().UTC().Format("2 January 2006"), runtimes[0].name, pictureName)
	report(&page, runtimes, o)
	draw(&picture, runtimes)
	if err := os.WriteFile(filepath.Join(folder, pictureName), []byte(picture.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "performance.md"), []byte(page.String()), 0o644)
}

// report prints the medians, as a table in Markdown. The last column is the second runtime's share of
// the first.
func report(w io.Writer, runtimes []*runtime, o options) {
	fmt.Fprintf(w, "%s; %d rounds; medians; lists, statistics and memory with %d pods.\n\n", machine(), o.rounds, o.pods)
	a, b := runtimes[0], runtimes[1]
	fmt.Fprintf(w, "| measure | %s %s | %s %s | ratio |\n|---|---:|---:|---:|\n",
		a.name, strings.TrimPrefix(a.version, "v"), b.name, strings.TrimPrefix(b.version, "v"))
	for _, row := range rows {
		x, y := a.figures.median(row), b.figures.median(row)
		if math.IsNaN(x) && math.IsNaN(y) {
			continue // -only leaves it out
		}
		text := row.text
		if row.more {
			text += " (more is better)"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", text, row.show(x), row.show(y), short(y/x))
	}
}

// machine is what the figures belong to.
func machine() string {
	var kernel unix.Utsname
	_ = unix.Uname(&kernel) // without it, the line has no version
	var memory unix.Sysinfo_t
	_ = unix.Sysinfo(&memory)
	return fmt.Sprintf("%d processors (%s), %d GiB of memory, Linux %s, %s", goruntime.NumCPU(), goruntime.GOARCH,
		(memory.Totalram*uint64(memory.Unit)+1<<29)>>30, unix.ByteSliceToString(kernel.Release[:]), cgroupVersion())
}

func cgroupVersion() string {
	if unified() {
		return "cgroup v2"
	}
	return "cgroup v1"
}

// show is a value of the row with its unit.
func (f *figure) show(x float64) string { return strings.TrimSpace(short(x) + " " + f.unit) }

// short is a number with about three digits, or a dash for one that could not be measured.
func short(x float64) string {
	switch {
	case math.IsNaN(x):
		return "-"
	case x >= 100 || x == math.Trunc(x) && x > 1:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x > 0 && x < 0.01:
		return fmt.Sprintf("%.3f", x)
	default:
		return fmt.Sprintf("%.2f", x)
	}
}

// median is not a number when nothing was measured.
func (f figures) median(row *figure) float64 {
	n := len(f[row])
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(f[row]))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
