package client

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
)

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

// limited sets 512 CPU shares and 64 MiB of memory in a spec.
func limited(spec map[string]any) {
	spec["linux"].(map[string]any)["resources"] = map[string]any{"cpu": map[string]any{"shares": 512}, "memory": map[string]any{"limit": 64 << 20}}
}

func resources(shares uint64, memory int64) []byte {
	return []byte(fmt.Sprintf(`{"cpu":{"shares":%d},"memory":{"limit":%d}}`, shares, memory))
}

func (h *host) update(u runtimeshim.Update) error {
	u.Previous = resources(512, 64<<20)
	return h.client.Update(context.Background(), u)
}

func TestUpdate(t *testing.T) {
	h := newHost(t)
	h.needsV1()
	h.start(h.params("c", sh("sleep 1000 & sleep 1000 & wait"), limited))
	h.eventually("it has forked", func() bool { return len(cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c"))) == 3 })
	adj := 300
	if err := h.update(runtimeshim.Update{ID: "c", Resources: resources(2048, 128<<20), OOMScoreAdj: &adj}); err != nil {
		t.Fatal(err)
	}
	h.wantLimits("c", "2048", fmt.Sprint(128<<20))
	for _, pid := range cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c")) {
		if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || string(raw) != "300\n" {
			t.Errorf("oom_score_adj of %d is %q, %v", pid, raw, err)
		}
	}
	// The kernel has already set the shares when it rejects the CPUs.
	err := h.update(runtimeshim.Update{ID: "c", Resources: []byte(`{"cpu":{"shares":4096,"cpus":"4000"},"memory":{"limit":33554432}}`)})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cpuset.cpus") {
		t.Errorf("processors that are not there: %v", err)
	}
	h.wantLimits("c", "2048", fmt.Sprint(128<<20))
	tooLow := 2000
	if err := h.update(runtimeshim.Update{ID: "c", Resources: resources(4096, 32<<20), OOMScoreAdj: &tooLow}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("oom_score_adj 2000: %v", err)
	}
	h.wantLimits("c", "2048", fmt.Sprint(128<<20))
	for _, id := range []string{"c", "gone"} {
		if err := h.client.Delete(context.Background(), "c"); err != nil {
			t.Fatal(err)
		}
		if err := h.update(runtimeshim.Update{ID: id, Resources: resources(2, 1<<20)}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("update of a task that is gone: %v", err)
		}
	}
	for _, bad := range []string{"", "7", `{"cpu":"x"}`, `{"unified":{"../x":"1"}}`} {
		h.idle("d")
		if err := h.update(runtimeshim.Update{ID: "d", Resources: []byte(bad)}); err == nil {
			t.Errorf("resources %q are taken", bad)
		}
		h.client.Delete(context.Background(), "d")
	}
}

// TestShimDiesInAnUpdate: the next shim does the update again, and can restore the old limits if it
// fails.
func TestShimDiesInAnUpdate(t *testing.T) {
	for _, step := range []string{"shim.update.intent", "shim.update.runc"} {
		t.Run(step, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", step)
			h := newHost(t)
			h.needsV1()
			h.start(h.params("c", []string{"/bin/sleep", "1000000"}, limited))
			if err := h.update(runtimeshim.Update{ID: "c", Resources: resources(2048, 128<<20)}); err != nil {
				t.Fatal(err)
			}
			h.wantLimits("c", "2048", fmt.Sprint(128<<20))
			if !exists(filepath.Join(h.state, "killed-at-step")) {
				t.Errorf("step %s never came", step)
			}
			if exists(h.client.state.Task("c").Limits()) {
				t.Error("the limits from before stay noted")
			}
		})
	}
	t.Run("and it fails", func(t *testing.T) {
		t.Setenv("CRIBOX_TEST_KILL_AT", "shim.update.runc")
		h := newHost(t)
		h.needsV1()
		h.start(h.params("c", []string{"/bin/sleep", "1000000"}, limited))
		impossible := 2000 // rejected only after the step
		if err := h.update(runtimeshim.Update{ID: "c", Resources: resources(2048, 128<<20), OOMScoreAdj: &impossible}); !errdefs.IsFailedPrecondition(err) {
			t.Fatal(err)
		}
		h.wantLimits("c", "512", fmt.Sprint(64<<20))
	})
}

// TestQuotaEndsWithTheTask: once an exit is reported, the parent's quota can be set below that of
// the task, even before the task is deleted.
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
