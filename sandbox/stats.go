package sandbox

import (
	"context"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Stats is what a container uses at one moment.
type Stats struct {
	At          time.Time
	CPU         uint64 // nanoseconds since its start
	Usage       uint64 // bytes of memory, page cache included
	WorkingSet  uint64 // bytes of memory that cannot be reclaimed at once
	Available   uint64 // bytes up to the limit; 0 without one
	RSS         uint64
	Faults      uint64
	MajorFaults uint64
	Layer       Layer
}

// Layer is the size of a writable layer when it was last measured.
type Layer struct {
	Mountpoint    string
	Bytes, Inodes uint64
	At            time.Time
}

// Stats returns what a container uses, straight from its cgroup; all zero for one that does not run (CRI ContainerStats).
func (m *Manager) Stats(ctx context.Context, c Container) Stats {
	s := Stats{At: time.Now(), Layer: m.layers.measure(m.rootPath("containers", c.ID, "upper"))}
	if !c.Running() || c.Cgroup == "" {
		return s
	}
	if m.host.CgroupV2 {
		readV2(&s, filepath.Join(cgroupRoot, c.Cgroup))
	} else {
		readV1(&s, c.Cgroup)
	}
	return s
}

func readV1(s *Stats, cgroup string) {
	memory := filepath.Join(cgroupRoot, "memory", cgroup)
	s.CPU = readUint(filepath.Join(cgroupRoot, "cpuacct", cgroup, "cpuacct.usage"))
	s.Usage = readUint(filepath.Join(memory, "memory.usage_in_bytes"))
	stat := readKeys(filepath.Join(memory, "memory.stat"))
	s.RSS, s.Faults, s.MajorFaults = stat["total_rss"], stat["total_pgfault"], stat["total_pgmajfault"]
	s.fill(stat["total_inactive_file"], readUint(filepath.Join(memory, "memory.limit_in_bytes")))
}

func readV2(s *Stats, dir string) {
	s.CPU = readKeys(filepath.Join(dir, "cpu.stat"))["usage_usec"] * 1000
	s.Usage = readUint(filepath.Join(dir, "memory.current"))
	stat := readKeys(filepath.Join(dir, "memory.stat"))
	s.RSS, s.Faults, s.MajorFaults = stat["anon"], stat["pgfault"], stat["pgmajfault"]
	s.fill(stat["inactive_file"], readUint(filepath.Join(dir, "memory.max")))
}

// fill derives the working set as the kubelet does (usage without inactive file pages) and what is left below the limit.
func (s *Stats) fill(inactive, limit uint64) {
	s.WorkingSet = s.Usage - min(inactive, s.Usage)
	if limit > 0 && limit < 1<<62 {
		s.Available = limit - min(s.WorkingSet, limit)
	}
}

// readUint reads one number; a missing file, or "max", is 0.
func readUint(path string) uint64 {
	n, err := strconv.ParseUint(readString(path), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// readKeys reads lines of a name and a number.
func readKeys(path string) map[string]uint64 {
	keys := map[string]uint64{}
	for line := range strings.Lines(readString(path)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			keys[name] = n
		}
	}
	return keys
}

// layerFor is how old a measured size may be.
const layerFor = time.Minute

// firstWalk is how long the first question for a layer waits for an answer; most layers are small.
const firstWalk = 100 * time.Millisecond

// layers remembers the sizes of writable layers, so that asking often walks seldom, and a walk that is slow keeps nobody waiting.
type layers struct {
	mu  sync.Mutex // guards what follows; not held while walking
	all map[string]*layer
}

type layer struct {
	last    Layer
	asked   time.Time
	walking chan struct{} // closed when the walk under way has ended; nil without one
}

// measure returns the size of a layer as it was at most layerFor ago, or, while a slow walk is under way, before that.
func (l *layers) measure(dir string) Layer {
	l.mu.Lock()
	one, known := l.all[dir]
	if !known {
		l.forget()
		one = &layer{last: Layer{Mountpoint: dir, At: time.Now()}}
		l.all[dir] = one
	}
	one.asked = time.Now()
	if one.walking == nil && (!known || time.Since(one.last.At) > layerFor) {
		one.walking = make(chan struct{})
		go l.walk(dir, one)
	}
	walking := one.walking
	l.mu.Unlock()
	if !known {
		select {
		case <-walking:
		case <-time.After(firstWalk):
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return one.last
}

func (l *layers) walk(dir string, one *layer) {
	now := Layer{Mountpoint: dir, At: time.Now()}
	now.Bytes, now.Inodes = diskUsage(dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	one.last = now
	close(one.walking)
	one.walking = nil
}

// forget drops the layers that nobody has asked about for long. Called with mu held.
func (l *layers) forget() {
	if l.all == nil {
		l.all = map[string]*layer{}
	}
	for dir, one := range l.all {
		if one.walking == nil && time.Since(one.asked) > 10*layerFor {
			delete(l.all, dir)
		}
	}
}

// diskUsage counts the blocks and inodes below dir; what goes away meanwhile is not counted.
func diskUsage(dir string) (bytes, inodes uint64) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !e.IsDir() {
			key := inode{st.Dev, st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	return bytes, inodes
}
