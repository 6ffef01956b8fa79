package cgroup

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupV2 is a cgroup, and what crun with systemd has in it: limits and processes are not in the
// scope but in its child. What is used the kernel counts in the scope too, where it is read:
// a container that can make cgroups hides nothing in one of that name.
type cgroupV2 struct{ dir, inner string }

// crunInner is the name of that child.
const crunInner = "container"

// enterV2 is enter, and looks for the child.
func (r *reader) enterV2(dir string) (c cgroupV2, leave func()) {
	c.dir, leave = r.enter(dir)
	if inner := filepath.Join(c.dir, crunInner); strings.HasSuffix(dir, ".scope") &&
		unix.Faccessat(r.at, inner, unix.F_OK, 0) == nil {
		c.inner = inner
	}
	return c, leave
}

// limit returns the lower limit of the two.
func (r *reader) limit(c cgroupV2, file string) *uint64 {
	n := r.number(filepath.Join(c.dir, file))
	if c.inner == "" {
		return n
	}
	if m := r.number(filepath.Join(c.inner, file)); m != nil && (n == nil || *m < *n) {
		n = m
	}
	return n
}

func (r *reader) usageV2(dir string, w wanted) Usage {
	c, leave := r.enterV2(dir)
	defer leave()
	return r.statV2(c, w, map[string]**uint64{})
}

// statV2 takes the figures of cpu.stat that the caller wants, beside its own.
func (r *reader) statV2(c cgroupV2, w wanted, cpu map[string]**uint64) Usage {
	dir := c.dir
	u := Usage{At: time.Now()}
	cpu["usage_usec"] = &u.CPU
	r.keys(filepath.Join(dir, "cpu.stat"), cpu)
	u.CPU = scale(u.CPU, 1000)
	m := &u.Memory
	var slab, stack, tables, perCPU *uint64
	m.Usage = r.number(filepath.Join(dir, "memory.current"))
	r.keys(filepath.Join(dir, "memory.stat"), map[string]**uint64{
		"anon": &m.RSS, "pgfault": &m.Faults, "pgmajfault": &m.MajorFaults, "file": &m.Cache, "file_mapped": &m.Mapped,
		"active_file": &m.ActiveFile, "inactive_file": &m.InactiveFile, "kernel": &m.Kernel,
		"slab": &slab, "kernel_stack": &stack, "pagetables": &tables, "percpu": &perCPU,
	})
	if m.Kernel == nil { // before Linux 5.18
		m.Kernel = SumOf(slab, stack, tables, perCPU)
	}
	var limit *uint64
	if w.limits {
		limit = r.limit(c, "memory.max")
	}
	m.derive(limit)
	if w.swap {
		u.Swap.Usage = r.number(filepath.Join(dir, "memory.swap.current"))
	}
	if w.limits && u.Swap.Usage != nil {
		u.Swap.Available = left(r.limit(c, "memory.swap.max"), *u.Swap.Usage)
	}
	u.CPUPressure = r.pressure(filepath.Join(dir, "cpu.pressure"))
	u.MemoryPressure = r.pressure(filepath.Join(dir, "memory.pressure"))
	u.IOPressure = r.pressure(filepath.Join(dir, "io.pressure"))
	return u
}

func (r *reader) detailV2(dir string, hugePages []string) Detail {
	c, leave := r.enterV2(dir)
	defer leave()
	dir = c.dir
	var d Detail
	d.Usage = r.statV2(c, wanted{swap: true}, map[string]**uint64{
		"user_usec": &d.User, "system_usec": &d.System, "nr_periods": &d.Periods, "nr_throttled": &d.Throttled,
		"throttled_usec": &d.ThrottledTime,
	})
	if c.inner != "" { // throttling is counted where the limit is
		var periods, throttled, time *uint64
		r.keys(filepath.Join(c.inner, "cpu.stat"),
			map[string]**uint64{"nr_periods": &periods, "nr_throttled": &throttled, "throttled_usec": &time})
		d.Periods, d.Throttled, d.ThrottledTime = SumOf(d.Periods, periods), SumOf(d.Throttled, throttled),
			SumOf(d.ThrottledTime, time)
	}
	d.User, d.System, d.ThrottledTime = scale(d.User, 1000), scale(d.System, 1000), scale(d.ThrottledTime, 1000)
	d.OwnFaults, d.OwnMajorFaults = d.Memory.Faults, d.Memory.MajorFaults // there is no other count
	d.PeakMemory = r.number(filepath.Join(dir, "memory.peak"))
	r.keys(filepath.Join(dir, "memory.events"),
		map[string]**uint64{"high": &d.Slowdowns, "max": &d.LimitHits, "oom_kill": &d.OOMKills})
	d.Threads = r.number(filepath.Join(dir, "pids.current"))
	d.MaxThreads = maxThreads(r.limit(c, "pids.max"))
	eachLine(r.read(filepath.Join(dir, "io.stat")), func(line []byte) {
		if dev, ok := deviceV2(line); ok {
			d.Devices = append(d.Devices, dev)
		}
	})
	for _, size := range hugePages {
		d.HugePages = append(d.HugePages, HugePages{Size: size,
			Usage: r.number(filepath.Join(dir, "hugetlb."+size+".current"))})
	}
	files := []string{filepath.Join(dir, "cgroup.procs")}
	if c.inner != "" {
		files = append(files, filepath.Join(c.inner, "cgroup.procs"))
	}
	r.processes(&d, files...)
	return d
}

// deviceV2 reads "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0". A device that was
// never used has no counters.
func deviceV2(line []byte) (d Device, ok bool) {
	f := bytes.Fields(line)
	if d.Major, d.Minor, ok = deviceNumber(f[0]); !ok || len(f) < 2 {
		return d, false
	}
	counters := map[string]*uint64{"rbytes": &d.ReadBytes, "wbytes": &d.WriteBytes, "rios": &d.Reads, "wios": &d.Writes}
	for _, pair := range f[1:] {
		name, value, _ := bytes.Cut(pair, []byte("="))
		if counter, wanted := counters[string(name)]; wanted {
			n := number(value)
			if n == nil {
				return d, false
			}
			*counter = *n
		}
	}
	return d, true
}

// pressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same of "full"; nil when
// the kernel does not measure it.
func (r *reader) pressure(path string) *Pressure {
	var p Pressure
	eachLine(r.read(path), func(line []byte) {
		kind, rest, _ := strings.Cut(string(line), " ")
		s, ok := stall(rest)
		switch {
		case !ok:
		case kind == "some":
			p.Some = &s
		case kind == "full":
			p.Full = &s
		}
	})
	if p.Some == nil && p.Full == nil {
		return nil
	}
	return &p
}

func stall(figures string) (s Stall, ok bool) {
	averages := map[string]*float64{"avg10": &s.Avg10, "avg60": &s.Avg60, "avg300": &s.Avg300}
	for _, pair := range strings.Fields(figures) {
		name, value, _ := strings.Cut(pair, "=")
		var err error
		if average, known := averages[name]; known {
			*average, err = strconv.ParseFloat(value, 64)
		} else if name == "total" {
			s.Total, err = strconv.ParseUint(value, 10, 64)
			s.Total *= 1000 // the kernel counts microseconds
			ok = true
		}
		if err != nil {
			return s, false
		}
	}
	return s, ok
}
