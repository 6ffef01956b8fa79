package cgroup

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/procfd"
)

// TestSignalsToReusedPID: a process that ends between the listing and the signal, and whose
// pid is reused by a process elsewhere, gets no signal.
func TestSignalsToReusedPID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroup.procs")
	stranger := exec.Command("sleep", "1000000")
	must(t, stranger.Start())
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	must(t, os.WriteFile(file, []byte(strconv.Itoa(stranger.Process.Pid)+"\n"), 0o600))
	afterListing = func() { must(t, os.WriteFile(file, nil, 0o600)) }
	defer func() { afterListing = func() {} }()
	if n := Signal([]string{filepath.Dir(file)}, unix.SIGTERM); n != 0 {
		t.Errorf("%d processes were signalled", n)
	}
	st, err := procfd.ReadStat(stranger.Process.Pid)
	if err != nil || st.State == 'Z' {
		t.Fatalf("the stranger was killed: %+v %v", st, err)
	}
	afterListing = func() {}
	must(t, os.WriteFile(file, []byte(strconv.Itoa(stranger.Process.Pid)+"\n"), 0o600))
	if n := Signal([]string{filepath.Dir(file)}, unix.SIGTERM); n != 1 {
		t.Errorf("%d processes were signalled, want the one that is there", n)
	}
}

// TestForeignCgroups: the cgroups of a task never include those that the shim is in, nor those that
// it started in.
func TestForeignCgroups(t *testing.T) {
	all := Mounts()
	if len(all) == 0 {
		t.Skip("no cgroups")
	}
	g := &Finder{hierarchies: all, born: []string{"/sys/fs/cgroup/system.slice/cribox.service"}}
	now, err := processCgroups(all, os.Getpid())
	must(t, err)
	dirs := append(slices.Clone(now), g.born[0], all[0].Mount, "/sys/fs/cgroup/pod/task")
	if got, err := g.foreign(dirs); err != nil || !slices.Equal(got, []string{"/sys/fs/cgroup/pod/task"}) {
		t.Errorf("may be killed: %v", got)
	}
}

// TestSpecCgroups: cgroups that the runtime did not record are derived from the spec, for both
// cgroup drivers.
func TestSpecCgroups(t *testing.T) {
	all := []Hierarchy{{Mount: "/sys/fs/cgroup/memory", Names: []string{"memory"}}, {Mount: "/sys/fs/cgroup/unified"}}
	for path, want := range map[string][]string{
		"/pods/abc":            {"/sys/fs/cgroup/memory/pods/abc", "/sys/fs/cgroup/unified/pods/abc"},
		"a-b.slice:cribox:abc": {"/sys/fs/cgroup/memory/a.slice/a-b.slice/cribox-abc.scope", "/sys/fs/cgroup/unified/a.slice/a-b.slice/cribox-abc.scope"},
		"/":                    nil, "a.slice:cribox": nil, "pods/abc": nil,
	} {
		file := filepath.Join(t.TempDir(), "config.json")
		raw, err := json.Marshal(specs.Spec{Linux: &specs.Linux{CgroupsPath: path}})
		if err != nil || os.WriteFile(file, raw, 0o600) != nil {
			t.Fatal(err)
		}
		if got, err := specCgroups(all, file); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q lies at %q, want %q", path, got, want)
		}
	}
}

// TestHugepages: the files of both versions, with and without those for reservations.
func TestHugepages(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, name := range []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.limit_in_bytes"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("9\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	limits := []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}, {Pagesize: "1GB", Limit: 0}}
	was, err := NoteLimits(filepath.Join(other, "note"), []string{other, dir}, LimitNames(specs.LinuxResources{HugepageLimits: limits}))
	if err != nil || len(was) != 3 {
		t.Fatalf("noted %v, %v", was, err)
	}
	want := func(texts ...string) {
		t.Helper()
		for i, name := range []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.limit_in_bytes"} {
			if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(raw) != texts[i] {
				t.Errorf("%s is %q, %v, want %q", name, raw, err, texts[i])
			}
		}
	}
	if err := SetHugepages([]string{other, dir}, limits); err != nil {
		t.Error(err)
	}
	want("4\n", "4\n", "0\n")
	// The note is from an interrupted update, so it takes precedence over the current values. Files
	// that it does not have, because that update changed others, are added to it.
	if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte("7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		was, err = NoteLimits(filepath.Join(other, "note"), []string{dir}, []string{"hugetlb.2MB.max", "pids.max"})
		if err != nil || len(was) != 4 || was[3].Text != "7\n" {
			t.Fatalf("noted %v, %v", was, err)
		}
	}
	if err := PutBack(was); err != nil {
		t.Error(err)
	}
	want("9\n", "9\n", "9\n")
	if err := SetHugepages([]string{other}, limits); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a controller: %v", err)
	}
}

// TestOOMKills parses what the kernel writes, in both cgroup versions.
func TestOOMKills(t *testing.T) {
	dir := t.TempDir()
	for name, row := range map[string]struct {
		text string
		want uint64
	}{
		"v1":                 {"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3},
		"v1, none":           {"oom_kill_disable 0\nunder_oom 1\noom_kill 0\n", 0},
		"v1 of old kernels":  {"oom_kill_disable 0\nunder_oom 0\n", 0},
		"v2":                 {"low 0\nhigh 7\nmax 51\noom 4\noom_kill 2\noom_group_kill 0\nsock_throttled 9\n", 2},
		"v2, limit hit only": {"low 0\nhigh 0\nmax 51\noom 4\noom_kill 0\noom_group_kill 0\n", 0},
		"v2, whole group":    {"low 0\nhigh 0\nmax 1\noom 1\noom_kill 12\noom_group_kill 1\n", 12},
		"v2 of old kernels":  {"low 0\nhigh 0\nmax 1\noom 1\noom_kill 1\n", 1},
		"empty":              {"", 0},
		"nonsense":           {"oom_kill many\n", 0},
	} {
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := OOMKills(file); got != row.want || err != nil {
			t.Errorf("%s: %d (%v), want %d", name, got, err, row.want)
		}
	}
	for _, name := range []string{filepath.Join(dir, "missing"), ""} {
		if n, err := OOMKills(name); n != 0 || err != nil {
			t.Errorf("a cgroup that is gone has counted %d (%v)", n, err)
		}
	}
	if n, err := OOMKills(dir); err == nil {
		t.Errorf("a counter that cannot be read is %d", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
