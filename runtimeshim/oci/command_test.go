package oci

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestRuntimeGetsSystemdFlag: if systemd creates a task's cgroup, every runtime command gets the
// flag for it, before the command's name.
func TestRuntimeGetsSystemdFlag(t *testing.T) {
	for systemd, want := range map[bool]string{
		true:  "runc --root /r --log /l --log-format json --systemd-cgroup delete x",
		false: "runc --root /r --log /l --log-format json delete x",
	} {
		if got := strings.Join(Command{Runtime: "runc", Systemd: systemd, Log: "/l", Args: []string{"delete", "x"}}.argv("/r"), " "); got != want {
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
		err := ClassOfRefusal(fmt.Errorf("%s", said))
		if got := errdefs.Resolve(err); class != nil && !strings.Contains(got.Error(), class.Error()) || class == nil && got != err && got != errdefs.ErrUnknown {
			t.Errorf("%s: %v", said, got)
		}
	}
}
