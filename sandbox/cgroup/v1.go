package cgroup

import (
	"bytes"
	"path/filepath"
	"time"
)

// Version 1 counts processor time in the accounting controller, and knows no pressure of a cgroup.

// memoryV1 returns the figures of all that is below the cgroup, and the page faults of the cgroup
// alone.
func (r *reader) memoryV1(root, path string, w wanted) (u Usage, own [2]*uint64) {
	u.At = time.Now()
	u.CPU = r.number(filepath.Join(root, "cpuacct", path, "cpuacct.usage"))
	memory, leave := r.enter(filepath.Join(root, "memory", path))
	defer leave()
	m := &u.Memory
	var most, swap *uint64
	m.Usage = r.number(filepath.Join(memory, "memory.usage_in_bytes"))
	r.keys(filepath.Join(memory, "memory.stat"), map[string]**uint64{
		"total_rss": &m.RSS, "total_pgfault": &m.Faults, "total_pgmajfault": &m.MajorFaults, "total_cache": &m.Cache,
		"total_mapped_file": &m.Mapped, "total_active_file": &m.ActiveFile, "total_inactive_file": &m.InactiveFile,
		"total_swap": &swap, "pgfault": &own[0], "pgmajfault": &own[1], "hierarchical_memory_limit": &most,
	})
	if w.swap {
		u.Swap.Usage = swap
	}
	if !w.limits || most != nil && *most >= unlimited { // here and above
		m.derive(nil)
		return u, own
	}
	limit := r.number(filepath.Join(memory, "memory.limit_in_bytes"))
	m.derive(limit)
	if !w.swap {
		return u, own
	}
	if both := r.number(filepath.Join(memory, "memory.memsw.limit_in_bytes")); both != nil && limit != nil &&
		u.Swap.Usage != nil && *both < unlimited {
		u.Swap.Available = left(new(*both-min(*limit, *both)), *u.Swap.Usage)
	}
	return u, own
}

func (r *reader) detailV1(root, path string, hugePages []string) Detail {
	var d Detail
	var own [2]*uint64
	d.Usage, own = r.memoryV1(root, path, wanted{swap: true})
	d.OwnFaults, d.OwnMajorFaults = own[0], own[1]
	r.keys(filepath.Join(root, "cpuacct", path, "cpuacct.stat"), map[string]**uint64{"user": &d.User, "system": &d.System})
	const tick = uint64(time.Second / 100) // USER_HZ is 100 on every architecture that we build for
	d.User, d.System = scale(d.User, tick), scale(d.System, tick)
	r.keys(filepath.Join(root, "cpu", path, "cpu.stat"), map[string]**uint64{
		"nr_periods": &d.Periods, "nr_throttled": &d.Throttled, "throttled_time": &d.ThrottledTime,
	})
	memory, leave := r.enter(filepath.Join(root, "memory", path))
	d.PeakMemory = r.number(filepath.Join(memory, "memory.max_usage_in_bytes"))
	if d.LimitHits = r.number(filepath.Join(memory, "memory.failcnt")); d.LimitHits != nil {
		d.Slowdowns = new(uint64(0))
	}
	d.Memory.Kernel = r.number(filepath.Join(memory, "memory.kmem.usage_in_bytes"))
	r.keys(filepath.Join(memory, "memory.oom_control"), map[string]**uint64{"oom_kill": &d.OOMKills})
	leave()
	d.Devices = r.devicesV1(filepath.Join(root, "blkio", path))
	for _, size := range hugePages {
		file := filepath.Join(root, "hugetlb", path, "hugetlb."+size)
		d.HugePages = append(d.HugePages, HugePages{size, r.number(file + ".usage_in_bytes"),
			r.number(file + ".max_usage_in_bytes")})
	}
	pids, leave := r.enter(filepath.Join(root, "pids", path))
	defer leave()
	d.Threads = r.number(filepath.Join(pids, "pids.current"))
	d.MaxThreads = maxThreads(r.number(filepath.Join(pids, "pids.max")))
	r.processes(&d, filepath.Join(pids, "cgroup.procs"))
	return d
}

// devicesV1 reads the counters that every scheduler keeps, those of the throttling layer.
func (r *reader) devicesV1(dir string) []Device {
	var all []Device
	read := func(file string, reads, writes func(*Device) *uint64) {
		eachLine(r.read(filepath.Join(dir, file)), func(line []byte) { // "254:0 Read 4096"
			f := bytes.Fields(line)
			if len(f) != 3 {
				return // the total
			}
			value := number(f[2])
			major, minor, ok := deviceNumber(f[0])
			if value == nil || !ok {
				return
			}
			switch string(f[1]) {
			case "Read":
				*reads(device(&all, major, minor)) = *value
			case "Write":
				*writes(device(&all, major, minor)) = *value
			}
		})
	}
	read("blkio.throttle.io_service_bytes_recursive",
		func(d *Device) *uint64 { return &d.ReadBytes }, func(d *Device) *uint64 { return &d.WriteBytes })
	read("blkio.throttle.io_serviced_recursive",
		func(d *Device) *uint64 { return &d.Reads }, func(d *Device) *uint64 { return &d.Writes })
	return all
}

// device returns the entry of a device, a new one when there is none.
func device(all *[]Device, major, minor uint64) *Device {
	for i := range *all {
		if d := &(*all)[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	*all = append(*all, Device{Major: major, Minor: minor})
	return &(*all)[len(*all)-1]
}

func deviceNumber(b []byte) (major, minor uint64, ok bool) {
	before, after, _ := bytes.Cut(b, []byte(":"))
	ma, mi := number(before), number(after)
	if ma == nil || mi == nil {
		return 0, 0, false
	}
	return *ma, *mi, true
}

func maxThreads(limit *uint64) *uint64 {
	if limit != nil && *limit >= unlimited {
		return new(uint64(0))
	}
	return limit
}
