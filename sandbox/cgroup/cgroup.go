package cgroup

import (
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is where cgroups are mounted: the hierarchy of version 2, or the folder with one hierarchy
// for each controller of version 1.
type Tree struct {
	Root string
	V2   bool
}

// Usage is what a cgroup and all below it use.
type Usage struct {
	// Err is why figures are missing that may well exist. It is of class ErrResourceExhausted when
	// we lacked the descriptors or the memory to read them; nil when nothing is missing, or the
	// cgroup is gone.
	Err error

	At     time.Time // when the first file was read
	CPU    *uint64   // nanoseconds on all processors
	Memory Memory
	Swap   Swap

	CPUPressure, MemoryPressure, IOPressure *Pressure // version 2 only
}

// Memory is in bytes, but for the faults.
type Memory struct {
	Usage       *uint64 // page cache included
	WorkingSet  *uint64 // what cannot be reclaimed at once: usage without inactive file pages, as the kubelet counts
	Available   *uint64 // what the working set may grow by; nil without a limit
	RSS         *uint64
	Faults      *uint64 // all page faults
	MajorFaults *uint64 // those that had to wait for a disk

	Cache, Mapped, Kernel    *uint64
	ActiveFile, InactiveFile *uint64
}

// Swap is in bytes.
type Swap struct {
	Usage     *uint64
	Available *uint64 // what it may grow by; nil without a limit
}

// Pressure is how long tasks have waited for something, since the cgroup was made and lately.
type Pressure struct {
	Some, Full *Stall // some or all tasks waited; nil where the kernel does not tell
}

// Stall is time in which nothing went on. The averages are in percent of the last 10, 60 and 300
// seconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64 // nanoseconds
}

// Detail is Usage with what metrics tell beside it, without what is left below the limits: files of
// their own, and no metric tells it.
type Detail struct {
	Usage
	User, System                      *uint64 // nanoseconds
	Periods, Throttled, ThrottledTime *uint64 // of the CPU quota: number, number, nanoseconds
	PeakMemory                        *uint64 // bytes
	LimitHits                         *uint64 // how often memory was at its limit
	// how often it was at the mark above which processes are slowed down; 0 with version 1, which has none
	Slowdowns                                 *uint64
	OOMKills                                  *uint64
	OwnFaults, OwnMajorFaults                 *uint64 // of the cgroup without those below it
	Threads, MaxThreads                       *uint64 // MaxThreads: 0 without a limit
	Processes, Descriptors, Sockets, MaxFiles *uint64 // see Processes
	Devices                                   []Device
	HugePages                                 []HugePages
}

// Device is what was read from and written to a block device.
type Device struct {
	Major, Minor                         uint64
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// HugePages is in bytes.
type HugePages struct {
	Size       string  // "2MB"
	Usage, Max *uint64 // now, and at most since the cgroup was made
}

// Usage reads what the cgroup at path uses; path is absolute within every hierarchy. What cannot be
// read is nil.
func (t Tree) Usage(path string) Usage {
	return t.usage(path, wanted{limits: true, swap: true})
}

// PodUsage is Usage of the cgroup of a pod, without swap, which is told of containers only, and
// Threads.
func (t Tree) PodUsage(path string) (Usage, *uint64) {
	return t.usage(path, wanted{limits: true}), t.Threads(path)
}

// wanted says which files are read: opening them is most of what the figures cost.
type wanted struct{ limits, swap bool }

func (t Tree) usage(path string, w wanted) Usage {
	r := readers.Get().(*reader)
	defer readers.Put(r)
	r.begin()
	var u Usage
	if t.V2 {
		u = r.usageV2(filepath.Join(t.Root, path), w)
	} else {
		u, _ = r.memoryV1(t.Root, path, w)
	}
	u.Err = r.missed(u)
	return u
}

// Detail reads what the cgroup at path uses, and huge pages of the sizes ("2MB").
func (t Tree) Detail(path string, hugePages []string) Detail {
	r := readers.Get().(*reader)
	defer readers.Put(r)
	r.begin()
	var d Detail
	if t.V2 {
		d = r.detailV2(filepath.Join(t.Root, path), hugePages)
	} else {
		d = r.detailV1(t.Root, path, hugePages)
	}
	d.Err = r.missed(d.Usage)
	return d
}

// Threads reads how many processes and threads there are in the cgroup at path and below it, or
// nil.
func (t Tree) Threads(path string) *uint64 {
	r := readers.Get().(*reader)
	defer readers.Put(r)
	if t.V2 {
		return r.number(filepath.Join(t.Root, path, "pids.current"))
	}
	return r.number(filepath.Join(t.Root, "pids", path, "pids.current"))
}

// None says whether nothing could be read.
func (u Usage) None() bool { return u.CPU == nil && u.Memory.Usage == nil }

// Gone says whether nothing could be read because nothing is there any more.
func (u Usage) Gone() bool { return u.None() && u.Err == nil }

// unlimited is the least number that stands for no limit; version 1 writes one that is near the
// largest.
const unlimited = 1 << 62

// derive fills the working set and what is left below the limit, nil for none.
func (m *Memory) derive(limit *uint64) {
	if m.Usage == nil || m.InactiveFile == nil {
		return
	}
	set := *m.Usage - min(*m.InactiveFile, *m.Usage)
	m.WorkingSet, m.Available = &set, left(limit, set)
}

func left(limit *uint64, used uint64) *uint64 {
	if limit == nil || *limit >= unlimited {
		return nil
	}
	return new(*limit - min(used, *limit))
}

// Sum adds up what cgroups beside each other use. Limits and pressure cannot be added, and are left
// out; so is swap, as of a pod.
func Sum(all ...Usage) Usage {
	var s Usage
	for _, u := range all {
		if s.Err == nil {
			s.Err = u.Err
		}
		if u.None() {
			continue
		}
		if s.At.IsZero() {
			s.At = u.At
		}
		s.CPU = SumOf(s.CPU, u.CPU)
		a, b := &s.Memory, u.Memory
		a.Usage, a.WorkingSet, a.RSS = SumOf(a.Usage, b.Usage), SumOf(a.WorkingSet, b.WorkingSet), SumOf(a.RSS, b.RSS)
		a.Faults, a.MajorFaults = SumOf(a.Faults, b.Faults), SumOf(a.MajorFaults, b.MajorFaults)
	}
	return s
}

// SumOf adds figures up; nil when none is known.
func SumOf(figures ...*uint64) *uint64 {
	var all *uint64
	for _, n := range figures {
		switch {
		case n == nil:
		case all == nil:
			all = new(*n)
		default:
			*all += *n
		}
	}
	return all
}

// Mount is where the hierarchies of cgroups are mounted.
const Mount = "/sys/fs/cgroup"

// Unified says whether this machine has cgroup v2 alone.
func Unified() bool {
	var fs unix.Statfs_t
	return unix.Statfs(Mount, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}
