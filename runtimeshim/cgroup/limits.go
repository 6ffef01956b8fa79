package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// limit is a cgroup file and its content.
type limit struct {
	Path, Text string
}

// LimitNames returns the names of the files, of both versions, that an update to r may change.
func LimitNames(r specs.LinuxResources) []string {
	names := []string{
		"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpuset.cpus", "cpuset.mems", "memory.limit_in_bytes",
		"memory.memsw.limit_in_bytes",
		"cpu.weight", "cpu.max", "memory.max", "memory.swap.max",
	}
	for _, l := range r.HugepageLimits {
		names = append(names, hugepageFiles(l.Pagesize)...)
	}
	for key := range r.Unified {
		names = append(names, key)
	}
	return names
}

// NoteLimits returns the content of the named files in dirs, and saves it in the file note. What is
// already noted there is from an update that was interrupted or could not be undone; it takes
// precedence, and may be for other names.
func NoteLimits(note string, dirs, names []string) ([]limit, error) {
	var was []limit
	if err := statedir.ReadJSON(note, &was); errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		was = nil
	} else if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		for _, name := range names {
			path := filepath.Join(dir, name)
			if filepath.Dir(path) != dir {
				return nil, fmt.Errorf("%q is not a cgroup file: %w", name, errdefs.ErrInvalidArgument)
			}
			if slices.ContainsFunc(was, func(l limit) bool { return l.Path == path }) {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil && helper.OutOfResources(err) {
				return nil, err
			}
			if err == nil { // the others belong to another controller or version, or are write-only
				was = append(was, limit{path, string(text)})
			}
		}
	}
	return was, statedir.WriteJSON(note, was)
}

// PutBack writes back every limit that has changed since it was noted. It ignores cgroups that are
// gone.
func PutBack(was []limit) error {
	var failed error
	for range 3 { // some depend on the order: memory and swap, period and quota
		failed = nil
		for _, l := range was {
			now, err := os.ReadFile(l.Path)
			if err == nil && string(now) != l.Text {
				err = writeLines(l.Path, l.Text)
			}
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
				failed = errors.Join(failed, err)
			}
		}
		if failed == nil {
			return nil
		}
	}
	return failed
}

// writeLines writes a cgroup file line by line, as the kernel requires. An empty text is one empty
// line.
func writeLines(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if _, err := f.WriteString(line + "\n"); err != nil {
			return err
		}
	}
	return nil
}

// hugepageFiles returns the files of a page size, of version 1 and 2. For each version the file
// that always exists comes first, then the one for reservations, which older kernels lack.
func hugepageFiles(size string) []string {
	return []string{
		"hugetlb." + size + ".limit_in_bytes", "hugetlb." + size + ".rsvd.limit_in_bytes",
		"hugetlb." + size + ".max", "hugetlb." + size + ".rsvd.max",
	}
}

// SetHugepages sets the hugepage limits, which runc's update does not.
func SetHugepages(dirs []string, limits []specs.LinuxHugepageLimit) error {
	for _, l := range limits {
		written := false
		for _, dir := range dirs {
			for _, name := range hugepageFiles(l.Pagesize) {
				err := writeLines(filepath.Join(dir, name), strconv.FormatUint(l.Limit, 10))
				if errors.Is(err, unix.ENOENT) {
					continue
				}
				if err != nil {
					return fmt.Errorf("limit huge pages of %s: %v: %w", l.Pagesize, err, errdefs.ErrFailedPrecondition)
				}
				written = true
			}
		}
		if !written {
			return fmt.Errorf("limit huge pages of %s: this machine has no controller for them: %w",
				l.Pagesize, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
