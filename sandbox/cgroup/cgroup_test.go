package cgroup

import (
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tree writes files below a new folder. A file that ends in "cgroup.procs" may say SELF.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		content = strings.ReplaceAll(content, "SELF", strconv.Itoa(os.Getpid()))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

var filesV1 = map[string]string{
	"cpuacct/pod/app/cpuacct.usage":              "5123456789\n",
	"cpuacct/pod/app/cpuacct.stat":               "user 300\nsystem 200\n",
	"cpu/pod/app/cpu.stat":                       "nr_periods 10\nnr_throttled 4\nthrottled_time 7000000000\nnr_bursts 0\nburst_time 0\n",
	"memory/pod/app/memory.usage_in_bytes":       "1000000\n",
	"memory/pod/app/memory.max_usage_in_bytes":   "1500000\n",
	"memory/pod/app/memory.limit_in_bytes":       "4000000\n",
	"memory/pod/app/memory.memsw.limit_in_bytes": "6000000\n",
	"memory/pod/app/memory.failcnt":              "3\n",
	"memory/pod/app/memory.kmem.usage_in_bytes":  "70000\n",
	"memory/pod/app/memory.oom_control":          "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	"memory/pod/app/memory.stat": "cache 1\nrss 2\nmapped_file 3\nswap 4\npgfault 5\npgmajfault 6\ninactive_file 7\nactive_file 8\n" +
		"hierarchical_memory_limit 4000000\ntotal_cache 300000\ntotal_rss 600000\ntotal_mapped_file 20000\ntotal_swap 500000\n" +
		"total_pgfault 900\ntotal_pgmajfault 90\ntotal_inactive_anon 11\ntotal_inactive_file 200000\ntotal_active_file 100000\n",
	"pids/pod/app/pids.current": "12\n",
	"pids/pod/app/pids.max":     "max\n",
	"pids/pod/app/cgroup.procs": "SELF\n",
	"blkio/pod/app/blkio.throttle.io_service_bytes_recursive": "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 1\n254:0 Total 12288\n" +
		"254:16 Read 1\n254:16 Write 2\nTotal 12291\n",
	"blkio/pod/app/blkio.throttle.io_serviced_recursive": "254:0 Read 1\n254:0 Write 2\n254:0 Total 3\n254:16 Read 3\n254:16 Write 4\nTotal 10\n",
	"hugetlb/pod/app/hugetlb.2MB.usage_in_bytes":         "2097152\n",
	"hugetlb/pod/app/hugetlb.2MB.max_usage_in_bytes":     "4194304\n",
}

var filesV2 = map[string]string{
	"pod/app/cpu.stat": "usage_usec 5123456\nuser_usec 3000000\nsystem_usec 2000000\ncore_sched.force_idle_usec 0\nnr_periods 10\n" +
		"nr_throttled 4\nthrottled_usec 7000000\nnr_bursts 0\nburst_usec 0\n",
	"pod/app/cpu.pressure":        "some avg10=1.50 avg60=0.75 avg300=0.25 total=4000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3000\n",
	"pod/app/memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=20\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
	"pod/app/io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
	"pod/app/memory.current":      "1000000\n",
	"pod/app/memory.peak":         "1500000\n",
	"pod/app/memory.max":          "4000000\n",
	"pod/app/memory.swap.current": "500000\n",
	"pod/app/memory.swap.max":     "2000000\n",
	"pod/app/memory.events":       "low 0\nhigh 9\nmax 3\noom 8\noom_kill 2\noom_group_kill 0\n",
	"pod/app/memory.stat": "anon 600000\nfile 300000\nkernel 70000\nkernel_stack 1\npagetables 2\npercpu 3\nslab 4\nfile_mapped 20000\n" +
		"inactive_anon 11\nactive_anon 12\ninactive_file 200000\nactive_file 100000\npgfault 900\npgmajfault 90\n",
	"pod/app/pids.current":        "12\n",
	"pod/app/pids.max":            "max\n",
	"pod/app/cgroup.procs":        "SELF\n",
	"pod/app/io.stat":             "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0\n",
	"pod/app/hugetlb.2MB.current": "2097152\n",
}

// want is what both trees say.
func want() Detail {
	n := func(n uint64) *uint64 { return &n }
	return Detail{
		Usage: Usage{
			Memory: Memory{Usage: n(1000000), WorkingSet: n(800000), Available: n(3200000), RSS: n(600000), Faults: n(900), MajorFaults: n(90),
				Cache: n(300000), Mapped: n(20000), Kernel: n(70000), ActiveFile: n(100000), InactiveFile: n(200000)},
			Swap: Swap{Usage: n(500000), Available: n(1500000)},
		},
		User: n(3e9), System: n(2e9), Periods: n(10), Throttled: n(4), ThrottledTime: n(7e9), PeakMemory: n(1500000), LimitHits: n(3), OOMKills: n(2),
		Threads: n(12), MaxThreads: n(0), Processes: n(1),
		Devices: []Device{{254, 0, 4096, 8192, 1, 2}, {254, 16, 1, 2, 3, 4}},
	}
}

// TestDetail reads the same from both versions, where both tell it.
func TestDetail(t *testing.T) {
	n := func(n uint64) *uint64 { return &n }
	v1, v2 := want(), want()
	v1.Slowdowns, v2.Slowdowns = n(0), n(9)
	v1.CPU, v1.OwnFaults, v1.OwnMajorFaults, v1.HugePages = n(5123456789), n(5), n(6), []HugePages{{"2MB", n(2097152), n(4194304)}}
	v2.CPU, v2.OwnFaults, v2.OwnMajorFaults, v2.HugePages = n(5123456000), n(900), n(90), []HugePages{{"2MB", n(2097152), nil}}
	v2.CPUPressure = &Pressure{Some: &Stall{1.5, 0.75, 0.25, 4e6}, Full: &Stall{0.5, 0, 0, 3e6}}
	v2.MemoryPressure = &Pressure{Some: &Stall{Total: 20e3}, Full: &Stall{Total: 10e3}}
	v2.IOPressure = &Pressure{Some: &Stall{Total: 7e3}}
	for _, c := range []struct {
		name string
		tree Tree
		want Detail
	}{
		{"version 1", Tree{Root: tree(t, filesV1)}, v1},
		{"version 2", Tree{Root: tree(t, filesV2), V2: true}, v2},
	} {
		got := c.tree.Detail("/pod/app", []string{"2MB"})
		if time.Since(got.At) > time.Minute {
			t.Errorf("%s: it was read at %s", c.name, got.At)
		}
		got.At = time.Time{}
		if got.Descriptors == nil || got.Sockets == nil || got.MaxFiles == nil || *got.Descriptors < 3 {
			t.Errorf("%s: of this process: descriptors %v, sockets %v, limit %v", c.name, got.Descriptors, got.Sockets, got.MaxFiles)
		}
		got.Descriptors, got.Sockets, got.MaxFiles = nil, nil, nil
		full := c.want.Usage
		c.want.Memory.Available, c.want.Swap.Available = nil, nil // no metric tells it
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %s\nwant %s", c.name, show(got), show(c.want))
		}
		usage := c.tree.Usage("/pod/app")
		usage.At = time.Time{}
		full.Memory.Kernel = usage.Memory.Kernel // of version 1 in Detail only
		if !reflect.DeepEqual(usage, full) {
			t.Errorf("%s, usage:\n got %s\nwant %s", c.name, show(usage), show(full))
		}
		pod, threads := c.tree.PodUsage("/pod/app")
		pod.At, full.Swap = time.Time{}, Swap{}
		if !reflect.DeepEqual(pod, full) || threads == nil || *threads != 12 {
			t.Errorf("%s, pod:\n got %s\nwant %s, threads %v", c.name, show(pod), show(full), threads)
		}
		if threads := c.tree.Threads("/pod/app"); threads == nil || *threads != 12 {
			t.Errorf("%s: threads %v", c.name, threads)
		}
	}
}

// TestCrun: with systemd, crun keeps limits and processes in a cgroup inside the scope. What is used
// is read of the scope, which a container cannot hide anything from.
func TestCrun(t *testing.T) {
	const scope, inner = "pod/cribox-app.scope/", "pod/cribox-app.scope/container/"
	files := map[string]string{}
	for name, text := range filesV2 {
		files[scope+strings.TrimPrefix(name, "pod/app/")] = text
	}
	for name, text := range map[string]string{
		"memory.max": "max\n", "memory.swap.max": "max\n", "pids.max": "max\n", "cgroup.procs": "\n", "cpu.stat": "usage_usec 5123456\nuser_usec 3000000\nsystem_usec 2000000\n",
	} {
		files[scope+name] = text
	}
	for name, text := range map[string]string{
		"memory.max": "4000000\n", "memory.swap.max": "2000000\n", "pids.max": "77\n", "cgroup.procs": "SELF\n", "memory.current": "1\n",
		"cpu.stat": "usage_usec 1\nnr_periods 10\nnr_throttled 4\nthrottled_usec 7000000\n",
	} {
		files[inner+name] = text
	}
	at := Tree{Root: tree(t, files), V2: true}
	u, w := at.Usage("/pod/cribox-app.scope"), want()
	if !reflect.DeepEqual(u.Memory, w.Memory) || !reflect.DeepEqual(u.Swap, w.Swap) || u.Err != nil {
		t.Errorf("usage:\n got %s\nwant %s", show(u), show(w.Usage))
	}
	d := at.Detail("/pod/cribox-app.scope", nil)
	for name, figure := range map[string][2]*uint64{
		"cpu": {d.CPU, new(uint64(5123456000))}, "periods": {d.Periods, w.Periods}, "throttled": {d.Throttled, w.Throttled}, "time": {d.ThrottledTime, w.ThrottledTime},
		"processes": {d.Processes, new(uint64(1))}, "most threads": {d.MaxThreads, new(uint64(77))},
	} {
		if !reflect.DeepEqual(figure[0], figure[1]) {
			t.Errorf("%s: %s, want %s", name, show(figure[0]), show(figure[1]))
		}
	}
}

// TestUnlimited: without a limit nothing is said to be left, and what is there is not told as zero.
func TestUnlimited(t *testing.T) {
	v1 := map[string]string{
		"memory/c/memory.usage_in_bytes": "100\n", "memory/c/memory.stat": "total_inactive_file 150\ntotal_swap 0\n",
		"memory/c/memory.limit_in_bytes": "9223372036854771712\n", "memory/c/memory.memsw.limit_in_bytes": "9223372036854771712\n",
	}
	v2 := map[string]string{
		"c/memory.current": "100\n", "c/memory.stat": "inactive_file 150\nslab 4\npagetables 2\n", "c/memory.max": "max\n",
		"c/memory.swap.current": "0\n", "c/memory.swap.max": "max\n",
	}
	for _, tree := range []Tree{{Root: tree(t, v1)}, {Root: tree(t, v2), V2: true}} {
		u := tree.Usage("/c")
		if u.Memory.Available != nil || u.Swap.Available != nil || u.Swap.Usage == nil || *u.Memory.WorkingSet != 0 {
			t.Errorf("version 2 %t: %s", tree.V2, show(u))
		}
		if tree.V2 && (u.Memory.Kernel == nil || *u.Memory.Kernel != 6) {
			t.Errorf("kernel memory without the kernel's own sum: %v", u.Memory.Kernel)
		}
	}
}

// TestNothing: what is not there, or is no number, is not known; it is never zero.
func TestNothing(t *testing.T) {
	broken := tree(t, map[string]string{
		"c/cpu.stat": "usage_usec x\n", "c/memory.current": "-1\n", "c/memory.stat": "anon\n\n \nfile 1 2\n", "c/cpu.pressure": "some avg10=x total=1\n",
		"c/io.pressure": "", "c/io.stat": "x rbytes=1\n254:0 rbytes=x\n", "c/cgroup.procs": "0\n\nx\n",
		"memory/c/memory.usage_in_bytes": "\n", "cpuacct/c/cpuacct.usage": "1 2\n", "blkio/c/blkio.throttle.io_serviced_recursive": "x Read 1\n254:0 Read\n",
	})
	for _, tree := range []Tree{{Root: broken}, {Root: broken, V2: true}, {Root: t.TempDir()}, {Root: t.TempDir(), V2: true}} {
		d := tree.Detail("/c", nil)
		if !d.None() {
			t.Errorf("version 2 %t: something was read: %s", tree.V2, show(d))
		}
		d.At, d.Processes = time.Time{}, nil
		if !reflect.DeepEqual(d, Detail{}) {
			t.Errorf("version 2 %t: %s", tree.V2, show(d))
		}
	}
}

func TestSum(t *testing.T) {
	at := time.Now()
	a := Usage{At: at, CPU: new(uint64(1)), Memory: Memory{Usage: new(uint64(2)), Available: new(uint64(3))}}
	b := Usage{At: at.Add(1), CPU: new(uint64(10)), Memory: Memory{RSS: new(uint64(20))}}
	got := Sum(Usage{}, a, b)
	want := Usage{At: at, CPU: new(uint64(11)), Memory: Memory{Usage: new(uint64(2)), RSS: new(uint64(20))}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %s, want %s", show(got), show(want))
	}
	if !reflect.DeepEqual(Sum(Usage{}, Usage{}), Usage{}) || *a.CPU != 1 {
		t.Error("a sum of nothing is something, or a part of a sum was changed")
	}
}

// TestSockets: of what this process has open, one more is a socket.
func TestSockets(t *testing.T) {
	tree := Tree{Root: tree(t, filesV2), V2: true}
	before := tree.Detail("/pod/app", nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	after := tree.Detail("/pod/app", nil)
	if *after.Sockets != *before.Sockets+1 || *after.Descriptors <= *before.Descriptors {
		t.Errorf("sockets %d, then %d; descriptors %d, then %d", *before.Sockets, *after.Sockets, *before.Descriptors, *after.Descriptors)
	}
}

// TestLongFile is longer than what is read at once.
func TestLongFile(t *testing.T) {
	var stat strings.Builder
	for i := range 5000 {
		stat.WriteString("key_" + strconv.Itoa(i) + " 1\n")
	}
	stat.WriteString("anon 7\n")
	u := Tree{Root: tree(t, map[string]string{"c/memory.stat": stat.String(), "c/memory.current": "max\n"}), V2: true}.Usage("/c")
	if u.Memory.RSS == nil || *u.Memory.RSS != 7 || *u.Memory.Usage != math.MaxUint64 {
		t.Errorf("the end of a long file was not read: %s", show(u))
	}
}

// show writes figures out instead of their addresses.
func show(v any) string {
	var s strings.Builder
	var walk func(reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				s.WriteString("-")
				return
			}
			walk(v.Elem())
		case reflect.Struct:
			s.WriteString("{")
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					s.WriteString(v.Type().Field(i).Name + ":")
					walk(v.Field(i))
					s.WriteString(" ")
				}
			}
			s.WriteString("}")
		case reflect.Uint64:
			s.WriteString(strconv.FormatUint(v.Uint(), 10))
		case reflect.Float64:
			s.WriteString(strconv.FormatFloat(v.Float(), 'g', -1, 64))
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		default:
			s.WriteString(v.String())
		}
	}
	walk(reflect.ValueOf(v))
	return s.String()
}
