package runtimeshim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCgroupOf(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/pod1/abc": "/kubepods/pod1/abc", "/a/../b": "/b", "/": "/",
		"kubepods-burstable-pod1.slice:cribox:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cribox-abc.scope",
		"system.slice:cribox:abc":                  "/system.slice/cribox-abc.scope",
		"-.slice:cribox:abc":                       "/cribox-abc.scope",
		"":                                         "", "relative/abc": "", "a.slice:cribox": "", "a.slice::abc": "", "a.slice:cribox:": "", "a:cribox:abc": "",
		".slice:cribox:abc": "", "a--b.slice:cribox:abc": "", "-a.slice:cribox:abc": "", "a-.slice:cribox:abc": "", "a.slice:../x:abc": "",
	} {
		if got := CgroupOf(path); got != want {
			t.Errorf("%q lies at %q, want %q", path, got, want)
		}
	}
}

// TestSpecCgroups: what the runtime never wrote down is found by the spec, whoever was to make it.
func TestSpecCgroups(t *testing.T) {
	all := []hierarchy{{mount: "/sys/fs/cgroup/memory", names: []string{"memory"}}, {mount: "/sys/fs/cgroup/unified"}}
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

// TestSystemdTellsTheRuntime: the flag is on every command of a task whose cgroup systemd makes, before the command's name.
func TestSystemdTellsTheRuntime(t *testing.T) {
	for systemd, want := range map[bool]string{
		true:  "runc --root /r --log /l --log-format json --systemd-cgroup delete x",
		false: "runc --root /r --log /l --log-format json delete x",
	} {
		if got := strings.Join(ociCommand{runtime: "runc", systemd: systemd, log: "/l", args: []string{"delete", "x"}}.argv("/r"), " "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestClassOfRefusal(t *testing.T) {
	for said, class := range map[string]error{
		`runc update: write /sys/fs/cgroup/cpu/x/cpu.cfs_quota_us: invalid argument`:                            errdefs.ErrFailedPrecondition,
		`runc update: write /sys/fs/cgroup/cpuset/x/cpuset.cpus: permission denied`:                             errdefs.ErrFailedPrecondition,
		`runc update: unable to set memory limit to 1048576 (current usage: 6, peak usage: 6)`:                  errdefs.ErrFailedPrecondition,
		`runc update: rejecting memory limit 1 <= usage 2`:                                                      errdefs.ErrFailedPrecondition,
		`runc update: rejecting memory+swap limit 1 <= usage 2`:                                                 errdefs.ErrFailedPrecondition,
		`runc update: unified resource "io.max" can't be set: controller "io" not available`:                    errdefs.ErrFailedPrecondition,
		`runc update: unable to set unified resource "memory.high": write /sys/fs/cgroup/x: invalid argument`:   errdefs.ErrInvalidArgument,
		`runc update: unable to set unified resource "memory.none": openat2 /sys/fs: no such file or directory`: errdefs.ErrFailedPrecondition,
		`runc update: something else`: nil,
	} {
		err := classOfRefusal(fmt.Errorf("%s", said))
		if got := errdefs.Resolve(err); class != nil && !strings.Contains(got.Error(), class.Error()) || class == nil && got != err && got != errdefs.ErrUnknown {
			t.Errorf("%s: %v", said, got)
		}
	}
}

func (h *host) limitFile(controller, id, name string) string {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, h.cgroup, id, name))
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func (h *host) wantLimits(id, shares, memory string) {
	h.t.Helper()
	got := []string{h.limitFile("cpu", id, "cpu.shares"), h.limitFile("memory", id, "memory.limit_in_bytes")}
	if want := []string{shares, memory}; !reflect.DeepEqual(got, want) {
		h.t.Errorf("shares and memory of %s are %v, want %v", id, got, want)
	}
}

func (h *host) needsV1() {
	h.t.Helper()
	if !exists("/sys/fs/cgroup/memory/memory.limit_in_bytes") {
		h.t.Skip("no memory controller of cgroup version 1")
	}
}

// limited is a spec with 512 shares and 64 MiB.
func limited(spec map[string]any) {
	spec["linux"].(map[string]any)["resources"] = map[string]any{"cpu": map[string]any{"shares": 512}, "memory": map[string]any{"limit": 64 << 20}}
}

func resources(shares uint64, memory int64) []byte {
	return []byte(fmt.Sprintf(`{"cpu":{"shares":%d},"memory":{"limit":%d}}`, shares, memory))
}

func (h *host) update(u Update) error {
	u.Previous = resources(512, 64<<20)
	return h.client.Update(context.Background(), u)
}

func TestUpdate(t *testing.T) {
	h := newHost(t)
	h.needsV1()
	h.start(h.params("c", sh("sleep 1000 & sleep 1000 & wait"), limited))
	h.eventually("it has forked", func() bool { return len(cgroupProcs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c"))) == 3 })
	adj := 300
	if err := h.update(Update{ID: "c", Resources: resources(2048, 128<<20), OOMScoreAdj: &adj}); err != nil {
		t.Fatal(err)
	}
	h.wantLimits("c", "2048", fmt.Sprint(128<<20))
	for _, pid := range cgroupProcs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c")) {
		if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || string(raw) != "300\n" {
			t.Errorf("oom_score_adj of %d is %q, %v", pid, raw, err)
		}
	}
	// The kernel has written the shares when it refuses the processors.
	err := h.update(Update{ID: "c", Resources: []byte(`{"cpu":{"shares":4096,"cpus":"4000"},"memory":{"limit":33554432}}`)})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cpuset.cpus") {
		t.Errorf("processors that are not there: %v", err)
	}
	h.wantLimits("c", "2048", fmt.Sprint(128<<20))
	tooLow := 2000
	if err := h.update(Update{ID: "c", Resources: resources(4096, 32<<20), OOMScoreAdj: &tooLow}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("oom_score_adj 2000: %v", err)
	}
	h.wantLimits("c", "2048", fmt.Sprint(128<<20))
	for _, id := range []string{"c", "gone"} {
		if err := h.client.Delete(context.Background(), "c"); err != nil {
			t.Fatal(err)
		}
		if err := h.update(Update{ID: id, Resources: resources(2, 1<<20)}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("update of a task that is gone: %v", err)
		}
	}
	for _, bad := range []string{"", "7", `{"cpu":"x"}`, `{"unified":{"../x":"1"}}`} {
		h.idle("d")
		if err := h.update(Update{ID: "d", Resources: []byte(bad)}); err == nil {
			t.Errorf("resources %q are taken", bad)
		}
		h.client.Delete(context.Background(), "d")
	}
}

// TestShimDiesInAnUpdate: its successor does the update again, and knows what was before should it fail now.
func TestShimDiesInAnUpdate(t *testing.T) {
	for _, step := range []string{"shim.update.intent", "shim.update.runc"} {
		t.Run(step, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", step)
			h := newHost(t)
			h.needsV1()
			h.start(h.params("c", []string{"/bin/sleep", "1000000"}, limited))
			if err := h.update(Update{ID: "c", Resources: resources(2048, 128<<20)}); err != nil {
				t.Fatal(err)
			}
			h.wantLimits("c", "2048", fmt.Sprint(128<<20))
			if !exists(filepath.Join(h.state, "killed-at-step")) {
				t.Errorf("step %s never came", step)
			}
			if exists(h.client.state.task("c").limits()) {
				t.Error("the limits from before stay noted")
			}
		})
	}
	t.Run("and it fails", func(t *testing.T) {
		t.Setenv("CRIBOX_TEST_KILL_AT", "shim.update.runc")
		h := newHost(t)
		h.needsV1()
		h.start(h.params("c", []string{"/bin/sleep", "1000000"}, limited))
		impossible := 2000 // is found out after the step
		if err := h.update(Update{ID: "c", Resources: resources(2048, 128<<20), OOMScoreAdj: &impossible}); !errdefs.IsFailedPrecondition(err) {
			t.Fatal(err)
		}
		h.wantLimits("c", "512", fmt.Sprint(64<<20))
	})
}

// TestHugepages: the files of both versions, with or without those for reservations.
func TestHugepages(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, name := range []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.limit_in_bytes"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("9\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	limits := []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}, {Pagesize: "1GB", Limit: 0}}
	was, err := noteLimits(filepath.Join(other, "note"), []string{other, dir}, limitNames(specs.LinuxResources{HugepageLimits: limits}))
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
	if err := setHugepages([]string{other, dir}, limits); err != nil {
		t.Error(err)
	}
	want("4\n", "4\n", "0\n")
	// The note is of an update that was cut short: it counts, whatever is there by now.
	// What it does not have, because that update changed something else, is added to it.
	if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte("7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		was, err = noteLimits(filepath.Join(other, "note"), []string{dir}, []string{"hugetlb.2MB.max", "pids.max"})
		if err != nil || len(was) != 4 || was[3].Text != "7\n" {
			t.Fatalf("noted %v, %v", was, err)
		}
	}
	if err := putBack(was); err != nil {
		t.Error(err)
	}
	want("9\n", "9\n", "9\n")
	if err := setHugepages([]string{other}, limits); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a controller: %v", err)
	}
}

// TestQuotaEndsWithTheTask: when an end is told, the quota of the parent can be less than the task's was, though nothing was deleted yet.
func TestQuotaEndsWithTheTask(t *testing.T) {
	h := newHost(t)
	h.needsV1()
	parent := filepath.Join("/sys/fs/cgroup/cpu", h.cgroup, "cpu.cfs_quota_us")
	h.start(h.params("c", []string{"/bin/sleep", "1000000"}, func(spec map[string]any) {
		spec["linux"].(map[string]any)["resources"] = map[string]any{"cpu": map[string]any{"quota": 30000, "period": 100000}}
	}))
	if got := h.limitFile("cpu", "c", "cpu.cfs_quota_us"); got != "30000" {
		t.Fatalf("the quota is %s", got)
	}
	if err := os.WriteFile(parent, []byte("10000"), 0); err == nil {
		t.Fatal("the kernel takes a parent's quota that is less than a child's: nothing to show")
	}
	if err := h.client.Kill(context.Background(), "c", syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	h.waitExit("c")
	if err := os.WriteFile(parent, []byte("10000"), 0); err != nil {
		t.Errorf("the task has ended: %v", err)
	}
}
