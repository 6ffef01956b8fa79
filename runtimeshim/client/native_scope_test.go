package client

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/systemd"
)

// scopedHost is a host on a machine where systemd makes scopes, with cgroups of version 2.
type scopedHost struct {
	*host
	scope string
}

const testSlice = "criboxtest.slice"

func newScopedHost(t *testing.T) *scopedHost {
	if !systemd.Runs() || exists("/sys/fs/cgroup/devices") {
		t.Skip("needs systemd, and cgroups of version 2")
	}
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", testSlice).Run() })
	h := newHost(t)
	return &scopedHost{h, "cribox-" + filepath.Base(h.cgroup) + ".scope"}
}

// pod is a pod that is started natively, in a scope.
func (h *scopedHost) pod() runtimeshim.Start {
	st := h.nativePod(func(spec map[string]any) {
		spec["linux"].(map[string]any)["cgroupsPath"] = testSlice + ":cribox:" + filepath.Base(h.cgroup)
	})
	st.SystemdCgroup, st.OOMFile = true, filepath.Join(h.dir(), "memory.events")
	return st
}

func (h *scopedHost) dir() string { return filepath.Join("/sys/fs/cgroup", testSlice, h.scope) }

// wantGone: neither the kernel nor systemd has the scope.
func (h *scopedHost) wantGone() {
	h.t.Helper()
	if exists(h.dir()) {
		h.t.Errorf("%s is left", h.dir())
	}
	out, err := exec.Command("systemctl", "show", "-P", "LoadState", h.scope).Output()
	if err != nil || string(out) != "not-found\n" {
		h.t.Errorf("systemd says that the scope is %s (%v)", out, err)
	}
}

// TestNativeScope: the process of a pod is alone in its scope, which is gone with it, however it ends.
func TestNativeScope(t *testing.T) {
	for _, end := range []string{"deleted", "killed"} {
		t.Run(end, func(t *testing.T) {
			h := newScopedHost(t)
			task := h.start(h.pod())
			h.wantNative("pod")
			if in := cgroup.Procs(h.dir()); len(in) != 1 || in[0] != task.Pid {
				t.Errorf("the scope has %v, want %d", in, task.Pid)
			}
			if end == "killed" {
				must(t, h.client.Kill(t.Context(), "pod", 9, false))
				h.eventually("it has ended", func() bool { return h.task("pod").State != runtimeshim.StateRunning })
			}
			must(t, h.client.Delete(t.Context(), "pod"))
			h.wantGone()
		})
	}
}

// TestShimDiesInAScope: the shim dies at each step of a native start and of the deletion. There is never more than one process, and in the
// end no scope.
func TestShimDiesInAScope(t *testing.T) {
	for _, step := range []string{"shim.place.cgroups", "shim.place.scope", "shim.start.runc", "shim.start.kept", "shim.delete.kill", "shim.delete.cleared"} {
		t.Run(step, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", step)
			h := newScopedHost(t)
			if _, err := h.client.Start(t.Context(), h.pod()); err != nil {
				if !strings.HasPrefix(step, "shim.place.") || !errdefs.IsUnavailable(err) {
					t.Fatal(err)
				}
				h.wantGone()
				h.start(h.pod())
			}
			h.wantNative("pod")
			if in := cgroup.Procs(h.dir()); len(in) != 1 {
				t.Errorf("the scope has %v", in)
			}
			must(t, h.client.Delete(t.Context(), "pod"))
			h.wantGone()
			if _, err := os.Stat(filepath.Join(h.state, "killed-at-step")); err != nil {
				t.Error(errors.Join(errors.New("the shim did not pass the step"), err))
			}
		})
	}
}
