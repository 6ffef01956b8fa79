package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/cgroup"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

// CgroupParent returns where the pods of one daemon lie that name no cgroup parent: a path below
// every hierarchy, or a slice of systemd's. The slice's name has no dash, so that it lies in no
// other: stopping it stops nothing else.
func CgroupParent(instance string, systemd bool) string {
	if systemd {
		return "cribox_" + instance + ".slice"
	}
	return "/cribox-" + instance
}

// SystemdRuns says whether systemd is this machine's first process: sd_booted(3).
func SystemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// InPod returns the handler of a pod, and what this machine can do for what is made in the pod. Who
// made the pod's cgroups goes on to make them, also when the configuration has named another since.
// Both are of one moment: handlers may be replaced in the next. ErrInvalidArgument when the pod's
// is gone.
func (n *Node) InPod(r *store.Pod) (spec.Host, Handler, error) {
	now := n.handlers.Load()
	with, err := now.find(r.Handler)
	if err != nil {
		return spec.Host{}, with, err
	}
	h := n.hostBy(now, r.Handler)
	h.SystemdCgroup = MadeBySystemd(r.Cgroup)
	h.CgroupParent = CgroupParent(n.conf.Instance, h.SystemdCgroup)
	return h, with, nil
}

// CgroupPath returns where below the cgroup mounts a spec puts its processes.
func CgroupPath(s *specs.Spec) string { return runtimeshim.CgroupOf(s.Linux.CgroupsPath) }

// MadeBySystemd says whether a cgroup is a scope. Of those that are made by hand the last part is
// the id of a pod or container.
func MadeBySystemd(cgroup string) bool { return strings.HasSuffix(cgroup, ".scope") }

const stopSliceLimit = 30 * time.Second

// RemoveCgroupParent removes both forms of it from every hierarchy. One that still holds a cgroup
// stays and is an error; a missing one is none.
func RemoveCgroupParent(ctx context.Context, instance string) error {
	for _, dir := range cgroupDirs(CgroupParent(instance, false)) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return removeSlice(ctx, CgroupParent(instance, true))
}

// cgroupDirs returns the folders that a path has in the hierarchies.
func cgroupDirs(path string) []string {
	found, err := filepath.Glob(filepath.Join(cgroup.Mount, "*", path)) // the pattern is right
	if err != nil {
		return nil
	}
	if present(filepath.Join(cgroup.Mount, path)) {
		found = append(found, filepath.Join(cgroup.Mount, path))
	}
	return found
}

// removeSlice has systemd forget a slice of ours, and with it the folders. What is in a slice that
// is stopped is killed, so it must be empty.
func removeSlice(ctx context.Context, slice string) error {
	dirs := cgroupDirs(slice)
	for _, dir := range dirs {
		if inside := firstInside(dir); inside != "" {
			return fmt.Errorf("remove slice %s: it still contains %s: %w", slice, inside, errdefs.ErrFailedPrecondition)
		}
	}
	if len(dirs) == 0 || !SystemdRuns() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopSliceLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "systemctl", "stop", slice).CombinedOutput(); err != nil {
		return fmt.Errorf("remove slice %s: systemctl stop: %w: %s", slice, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// firstInside returns a cgroup below dir, "" when there is none. Processes are in scopes, never in
// the slice itself.
func firstInside(dir string) string {
	inside := ""
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && path != dir {
			inside = path
			return fs.SkipAll
		}
		return nil
	})
	return inside
}
