package main

import (
	"fmt"
	"io"
	goruntime "runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// report prints the medians, as a table in Markdown. The last column is the second runtime's share of
// the first.
func report(w io.Writer, runtimes []*runtime, o options) {
	var kernel unix.Utsname
	_ = unix.Uname(&kernel) // without it, the line has no version
	fmt.Fprintf(w, "%d processors, Linux %s, %s; %d rounds; medians; lists, stats and memory with %d pods\n\n",
		goruntime.NumCPU(), unix.ByteSliceToString(kernel.Release[:]), cgroupVersion(), o.rounds, o.pods)
	a, b := runtimes[0], runtimes[1]
	fmt.Fprintf(w, "| measure | %s %s | %s %s | ratio |\n|---|---:|---:|---:|\n",
		a.name, strings.TrimPrefix(a.version, "v"), b.name, strings.TrimPrefix(b.version, "v"))
	for _, row := range rows {
		x, y := median(a.figures[row]), median(b.figures[row])
		fmt.Fprintf(w, "| %s | %s %s | %s %s | %.2f |\n", row.text, short(x), row.unit, short(y), row.unit, y/x)
	}
}

func cgroupVersion() string {
	if unified() {
		return "cgroup v2"
	}
	return "cgroup v1"
}

// short is a number with about three digits.
func short(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.2f", x)
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
