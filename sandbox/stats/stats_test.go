package stats

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/cgroup"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// TestNanoCores: a rate is over a second at least, whoever asks in between or at the same time, and
// nothing is told of a counter that went back.
func TestNanoCores(t *testing.T) {
	var r rates
	began := time.Now()
	for _, c := range []struct {
		after time.Duration
		cpu   uint64
		want  *uint64
	}{
		{0, 5e9, nil},
		{500 * time.Millisecond, 6e9, nil}, // too early
		{2 * time.Second, 7e9, new(uint64(1e9))},
		{2500 * time.Millisecond, 10e9, new(uint64(2e9))}, // since the first
		{4 * time.Second, 7e9 + 500e6, new(uint64(250e6))},
		{3900 * time.Millisecond, 7e9 + 400e6, new(uint64(250e6))}, // at the same time as the one before
		{4100 * time.Millisecond, 7e9 + 450e6, new(uint64(250e6))},
		{6 * time.Second, 1e9, nil}, // made anew
		{7 * time.Second, 1e9, new(uint64(0))},
		{7*time.Second + forgetAfter + 1, 2e9, nil}, // nobody asked
	} {
		if got := r.nanoCores("c", began.Add(c.after), &c.cpu); !reflect.DeepEqual(got, c.want) {
			t.Errorf("after %s: got %v, want %v", c.after, value(got), value(c.want))
		}
	}
	if r.nanoCores("c", began, nil) != nil {
		t.Error("a rate of what is not known")
	}
	r.nanoCores("other", began.Add(30*time.Minute), new(uint64(1)))
	if len(r.all) != 1 {
		t.Errorf("%d are remembered, want the one that was asked about", len(r.all))
	}
}

func value(n *uint64) any {
	if n == nil {
		return "nothing"
	}
	return *n
}

func TestParseInterfaces(t *testing.T) {
	const head = "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
	lo := "    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0\n"
	eth0 := "  eth0: 1000       20    3    4    0     0          0         0  5000    60    7    8    0     0       0          0\n"
	net1 := "veth_a.1:1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"
	first := Interface{"eth0", Traffic{1000, 20, 3, 4}, Traffic{5000, 60, 7, 8}}
	loop := Interface{"lo", Traffic{3193, 29, 0, 0}, Traffic{3193, 29, 0, 0}}
	other := Interface{"veth_a.1", Traffic{1, 2, 3, 4}, Traffic{5, 6, 7, 8}}
	for _, c := range []struct {
		dev  string
		want []Interface
	}{
		{head + lo + eth0, []Interface{first, loop}},
		{head + lo + net1 + eth0, []Interface{first, other, loop}},
		{head + lo + net1, []Interface{other, loop}},
		{head + lo, nil},
		{"", nil},
		{head + "e\xffh:1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n", []Interface{{`"e\xffh"`, other.Rx, other.Tx}}}, // a message is UTF-8
		{head + "eth0: 1 2 3\neth1: x 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n", nil},
	} {
		if got := parseInterfaces(c.dev); !reflect.DeepEqual(got, c.want) {
			t.Errorf("of\n%s\ngot %v, want %v", c.dev, got, c.want)
		}
	}
}

// TestManyInterfaces: a pod that makes more of them than can be told still has its default one told
// first.
func TestManyInterfaces(t *testing.T) {
	const counters = ":1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"
	var dev strings.Builder
	for i := range 10 * maxInterfaces {
		fmt.Fprintf(&dev, "dummy%d%s", i, counters)
	}
	got := parseInterfaces(dev.String() + "eth0" + counters)
	if len(got) != maxInterfaces || got[0].Name != "eth0" || got[1].Name != "dummy0" {
		t.Errorf("%d are told, want %d that begin with eth0: %v", len(got), maxInterfaces, got[:2])
	}
}

// TestLayers: a layer is walked once for all who ask within a minute, what is written twice in a
// folder counts once, and what is not there has no size.
func TestLayers(t *testing.T) {
	var l layers
	dir := t.TempDir()
	for name, size := range map[string]int{"a": 1 << 20, "b": 1} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var first []Layer
	for deadline := time.Now().Add(time.Minute); len(first) == 0 || first[0].At.IsZero() || first[1].At.IsZero(); {
		if first = l.measure(dir, filepath.Join(dir, "none")); time.Now().After(deadline) {
			t.Fatal("the layers were not measured within a minute")
		}
	}
	size := first[0]
	if size.Bytes == nil || *size.Bytes < 1<<20 || *size.Bytes > 1<<20+64<<10 || *size.Inodes != 3 || *size.Capacity < *size.Bytes {
		t.Errorf("1 MiB, a byte and a link are %v bytes in %v inodes", value(size.Bytes), value(size.Inodes))
	}
	if none := first[1]; none.Bytes != nil || none.Capacity != nil {
		t.Errorf("what is not there has %v bytes", value(none.Bytes))
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if again := l.measure(dir)[0]; !reflect.DeepEqual(again, size) {
		t.Errorf("it was walked again: %v", again)
	}
}

// measureLayer is a walk that has nobody to take turns with.
func measureLayer(dir string) Layer {
	l := &layers{free: make(chan struct{}, 1)}
	l.free <- struct{}{}
	w := layerWalk{layers: l, one: &layer{asked: time.Now()}, turn: time.Now()}
	w.measure(dir)
	return w.now
}

// TestDiskUsage: what a path cannot name is counted, a file once for all its names, and nothing
// that a link leads to.
func TestDiskUsage(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(outside, "big"))
	if err := os.Symlink(outside, filepath.Join(dir, "folder")); err != nil {
		t.Fatal(err)
	}
	const depth = 50
	at, err := os.OpenRoot(dir)
	for name := strings.Repeat("n", 200); err == nil && len(at.Name()) < depth*len(name); { // beyond PATH_MAX
		if err = at.Mkdir(name, 0o700); err == nil {
			at, err = at.OpenRoot(name)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if err := at.WriteFile("deep", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"one", "two"} {
		if err := at.Link("deep", link); err != nil {
			t.Fatal(err)
		}
	}
	folders := uint64(1) // dir
	for name := at.Name(); name != dir; name = filepath.Dir(name) {
		folders++
	}
	l := measureLayer(dir)
	if *l.Bytes < 1<<20 || *l.Bytes >= 2<<20 || *l.Inodes != folders+2 {
		t.Errorf("1 MiB with three names in %d folders, and a link, are %d bytes in %d inodes", folders, *l.Bytes, *l.Inodes)
	}
}

// TestStatsWithoutDescriptors: what runs is not left out of a list because its figures could not be
// read: the question fails, and is asked again. A cgroup that is gone is left out.
func TestStatsWithoutDescriptors(t *testing.T) {
	f := &Figures{table: table.New(layout.Layout{})}
	f.host.CgroupV2 = cgroup.Unified()
	runs := table.Container{Container: store.Container{ID: "c", State: store.ContainerRunning, Cgroup: "/"}}
	pod := table.Pod{Pod: store.Pod{ID: "p", PausePID: 1, Cgroup: "/"}}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 0, Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	_, one := f.Stats(runs)
	list, all := f.ListStats([]table.Container{runs})
	_, onePod := f.PodStats(pod)
	_, allPods := f.ListPodStats([]table.Pod{pod})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Stats": one, "ListStats": all, "PodStats": onePod, "ListPodStats": allPods} {
		if !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("%s without descriptors: %v, with %d containers", what, err, len(list))
		}
	}
	gone := runs
	gone.Cgroup = "/cribox-test-none"
	if list, err := f.ListStats([]table.Container{gone}); err != nil || len(list) != 0 {
		t.Errorf("of a cgroup that is gone: %v, %d containers", err, len(list))
	}
	broken := Stats{Usage: Usage{Err: unix.EIO}}
	if got := present([]Stats{broken, {}}); len(got) != 1 || starved(got...) != nil {
		t.Errorf("of one that cannot be read and one that is gone, %d are listed", len(got))
	}
}

// TestPanicCostsOneQuestion: what panics while figures are read fails the question, and no more.
func TestPanicCostsOneQuestion(t *testing.T) {
	err := each(20, func(i int) {
		if i == 7 {
			panic("oh")
		}
	})
	if !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a panic comes back as %v", err)
	}
	if err := each(20, func(int) {}); err != nil {
		t.Errorf("without a panic: %v", err)
	}
}

// TestLayersTakeTurns: layers of more files than can be walked in any time keep no others from
// being measured, and show what was counted of them so far.
func TestLayersTakeTurns(t *testing.T) {
	var endless, small []string
	for range 2 * walkers {
		endless, small = append(endless, t.TempDir()), append(small, t.TempDir())
	}
	l := layers{count: func(dir string, look func(bytes, inodes uint64) error) (bytes, inodes uint64, err error) {
		for slices.Contains(endless, dir) && err == nil {
			bytes, inodes = bytes+4096, inodes+1
			err = look(bytes, inodes)
		}
		return bytes, inodes, err
	}}
	missing := func(all []Layer) bool { return slices.ContainsFunc(all, func(l Layer) bool { return l.Bytes == nil }) }
	deadline := time.Now().Add(time.Minute)
	for l.measure(endless...); missing(l.measure(small...)) || missing(l.measure(endless...)); {
		if time.Now().After(deadline) {
			t.Fatal("not all layers were measured within a minute")
		}
	}
	before := l.measure(endless[0])[0]
	for *l.measure(endless[0])[0].Bytes <= *before.Bytes {
		if time.Now().After(deadline) {
			t.Fatalf("it stays at %d bytes", *before.Bytes)
		}
	}
	var walks []chan struct{}
	l.mu.Lock()
	for _, dir := range endless {
		l.all[dir].asked = time.Time{}
		walks = append(walks, l.all[dir].walking)
	}
	l.mu.Unlock()
	for _, walk := range walks { // they end when nobody asks
		<-walk
	}
}

// TestVolumesCount: what a container writes to a volume of its image is its own.
func TestVolumesCount(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"upper", filepath.Join(layout.Volumes, "0")} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path, "file"), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if l := measureLayer(filepath.Join(dir, "upper")); l.Bytes == nil || *l.Bytes < 2<<20 || *l.Inodes != 5 {
		t.Errorf("%v", l)
	}
}

// TestReadUpTo: a list of interfaces of any length is read in part.
func TestReadUpTo(t *testing.T) {
	b, err := readUpTo("/dev/zero", 1000)
	if err != nil || len(b) != 1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
