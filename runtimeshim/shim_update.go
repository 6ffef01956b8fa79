package runtimeshim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// updateBody is the request of the verb update.
type updateBody struct {
	ID          string          `json:"id"`
	Resources   json.RawMessage `json:"resources"`
	Previous    json.RawMessage `json:"previous"`
	OOMScoreAdj *int            `json:"oom_score_adj,omitempty"`
	LockFile    string          `json:"lock_file,omitempty"`
}

// updater changes the limits of running tasks.
type updater struct {
	env
	table   *table
	driver  *driver
	cgroups *cgroups
}

// update changes the limits of a running task. On error they are what they were
// before. It is finished whether or not the caller waits.
func (u *updater) update(ctx context.Context, in *inbound) (any, error) {
	var b updateBody
	if err := in.decode(&b); err != nil {
		return nil, err
	}
	var r specs.LinuxResources
	if err := json.Unmarshal(b.Resources, &r); err != nil {
		return nil, fmt.Errorf("update task %s: read resources: %v: %w", b.ID, err, errdefs.ErrInvalidArgument)
	}
	if err := errors.Join(checkID(b.ID), u.checkLockFile(b.LockFile)); err != nil {
		return nil, err
	}
	t, err := u.table.lock(ctx, b.ID)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("update task %s, which is not there: %w", b.ID, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	defer t.unlock()
	if _, err := u.table.runningTask(b.ID); err != nil {
		return nil, err
	}
	if err := u.updateTask(context.WithoutCancel(ctx), t, b, r); err != nil {
		return nil, fmt.Errorf("update task %s: %w", b.ID, err)
	}
	return nil, nil
}

// updateTask notes the limits, changes them, and puts back what it noted when
// that fails: a runtime that fails has changed what came before.
func (u *updater) updateTask(ctx context.Context, t *task, b updateBody, r specs.LinuxResources) error {
	dirs, err := u.cgroups.cgroupsOf(t.dir, t.livePid())
	if err != nil {
		return err
	}
	was, err := noteLimits(t.dir.limits(), dirs, limitNames(r))
	if err != nil {
		return err
	}
	u.step("shim.update.intent")
	if err := u.setLimits(ctx, t, dirs, b, r); err != nil {
		if t.rec.Systemd { // which has a memory of its own, and applies it again when it is reloaded
			_ = u.runUpdate(ctx, t, b.Previous, b.LockFile) // the files are what counts until then, and come next
		}
		if back := putBack(was); back != nil {
			return fmt.Errorf("%w; and the limits from before are not all back: %v", err, back)
		}
		return errors.Join(err, os.Remove(t.dir.limits()))
	}
	if err := os.Remove(t.dir.limits()); err != nil {
		log.L.WithError(err).WithField("container", b.ID).Warn("the limits from before an update stay noted")
	}
	return nil
}

// setLimits has the runtime change what it changes, and changes the rest.
func (u *updater) setLimits(ctx context.Context, t *task, dirs []string, b updateBody, r specs.LinuxResources) error {
	if err := u.runUpdate(ctx, t, b.Resources, b.LockFile); err != nil {
		return err
	}
	u.step("shim.update.runc")
	if err := setHugepages(dirs, r.HugepageLimits); err != nil {
		return err
	}
	if b.OOMScoreAdj == nil {
		return nil
	}
	state := filepath.Join(u.state.runcRoot(), t.rec.ID, "state.json")
	was, err := tellRuntimeOOMScore(state, []byte(strconv.Itoa(*b.OOMScoreAdj)))
	if err != nil {
		return err
	}
	if err := u.cgroups.setOOMScore(dirs, *b.OOMScoreAdj); err != nil {
		_, back := tellRuntimeOOMScore(state, was)
		return errors.Join(err, back)
	}
	return nil
}

// tellRuntimeOOMScore changes the oom_score_adj in runc's state file and returns what it was: runc gives it to everything that it executes
// in the container, whatever the process that it is handed says, and its update does not change it. Another runtime's state stays.
func tellRuntimeOOMScore(name string, adj json.RawMessage) (was json.RawMessage, err error) {
	const key = "oom_score_adj"
	var state, config map[string]json.RawMessage
	if err := readJSON(name, &state); err != nil || state["config"] == nil {
		return nil, nil
	}
	if err := json.Unmarshal(state["config"], &config); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	was = config[key]
	if config[key] = adj; adj == nil {
		delete(config, key)
	}
	if state["config"], err = json.Marshal(config); err != nil {
		return nil, err
	}
	return was, writeJSON(name, state)
}

// runUpdate executes the runtime's update.
func (u *updater) runUpdate(ctx context.Context, t *task, resources []byte, lockFile string) error {
	if lockFile == "" {
		lockFile = t.lockFile()
	}
	lock, err := u.driver.lockShared(ctx, lockFile)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.WriteFile(t.dir.resources(), resources, 0o600); err != nil {
		return err
	}
	defer os.Remove(t.dir.resources())
	return classOfRefusal(u.driver.runQuietly(ctx, ociCommand{runtime: t.rec.Runtime, systemd: t.rec.Systemd, log: t.dir.runtimeLog(), wait: updateWait,
		extra: []*os.File{lock}, args: []string{"update", "--resources", t.dir.resources(), t.rec.ID}}))
}

// refusals are how a runtime tells that the kernel does not take a limit in the
// place where the cgroup is: what is in use, or what the parent has, forbids it.
var refusals = []string{
	"invalid argument", "permission denied", "operation not permitted", "device or resource busy", "no space left on device",
	"numerical result out of range", "no such file or directory", "memory limit", "memory+swap limit", "can't be set", "allowed cpu-shares",
}

// classOfRefusal gives the error of a runtime's update its class.
func classOfRefusal(err error) error {
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	said := err.Error()
	if strings.Contains(said, "unified resource") && strings.Contains(said, "invalid argument") {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, r := range refusals {
		if strings.Contains(said, r) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return err
}

// limit is a file of a cgroup and what it said.
type limit struct {
	Path, Text string
}

// limitNames are the files that an update to r may change, of both versions.
func limitNames(r specs.LinuxResources) []string {
	names := []string{
		"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpuset.cpus", "cpuset.mems", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes",
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

// noteLimits returns what the files of these names say in dirs, and keeps it in
// the file note. What is noted there already is of an update that was cut short
// or could not be undone, and counts; it may have been one to other names.
func noteLimits(note string, dirs, names []string) ([]limit, error) {
	var was []limit
	if err := readJSON(note, &was); errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		was = nil
	} else if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		for _, name := range names {
			path := filepath.Join(dir, name)
			if filepath.Dir(path) != dir {
				return nil, fmt.Errorf("%q is no file of a cgroup: %w", name, errdefs.ErrInvalidArgument)
			}
			if slices.ContainsFunc(was, func(l limit) bool { return l.Path == path }) {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil && outOfResources(err) {
				return nil, err
			}
			if err == nil { // the others are of another controller or version, or are only written
				was = append(was, limit{path, string(text)})
			}
		}
	}
	return was, writeJSON(note, was)
}

// putBack writes every limit that has changed since it was noted. Those of a
// cgroup that is gone need no more than that.
func putBack(was []limit) error {
	var failed error
	for range 3 { // one may have to come after another: memory and swap, period and quota
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

// writeLines writes a cgroup's file line by line, as the kernel takes it. No
// text is one empty line.
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

// hugepageFiles are the files of a page size, of version 1 and 2, what must be
// there first.
func hugepageFiles(size string) []string {
	return []string{
		"hugetlb." + size + ".limit_in_bytes", "hugetlb." + size + ".rsvd.limit_in_bytes", "hugetlb." + size + ".max", "hugetlb." + size + ".rsvd.max",
	}
}

// setHugepages does what runc's update leaves out.
func setHugepages(dirs []string, limits []specs.LinuxHugepageLimit) error {
	for _, l := range limits {
		written := false
		for _, dir := range dirs {
			for _, name := range hugepageFiles(l.Pagesize) {
				err := writeLines(filepath.Join(dir, name), strconv.FormatUint(l.Limit, 10))
				if errors.Is(err, unix.ENOENT) {
					continue
				}
				if err != nil {
					return fmt.Errorf("limit pages of %s: %v: %w", l.Pagesize, err, errdefs.ErrFailedPrecondition)
				}
				written = true
			}
		}
		if !written {
			return fmt.Errorf("limit pages of %s: there is no controller for it: %w", l.Pagesize, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// oomRounds bounds how often setOOMScore looks for processes that were forked
// by one that it had not come to yet.
const oomRounds = 10

// within says whether path is one of dirs or below.
func within(dirs []string, path string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}
