package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// updater changes the limits of running tasks.
type updater struct {
	env
	table   *table
	driver  *oci.Driver
	cgroups *cgroup.Finder
}

// update changes the limits of a running task. On error the old limits are restored. It runs to the
// end even if the caller disconnects.
func (u *updater) update(ctx context.Context, in *wire.Inbound) (any, error) {
	var b wire.Update
	if err := in.Decode(&b); err != nil {
		return nil, err
	}
	var r specs.LinuxResources
	if err := json.Unmarshal(b.Resources, &r); err != nil {
		return nil, fmt.Errorf("update task %s: read resources: %v: %w", b.ID, err, errdefs.ErrInvalidArgument)
	}
	if err := errors.Join(statedir.CheckID(b.ID), u.checkLockFile(b.LockFile)); err != nil {
		return nil, err
	}
	t, err := u.table.lock(ctx, b.ID)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("update task %s: no such task: %w", b.ID, errdefs.ErrFailedPrecondition)
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

// updateTask notes the old limits, sets the new ones, and restores the old ones on error, because a
// runtime that fails may already have changed some.
func (u *updater) updateTask(ctx context.Context, t *task, b wire.Update, r specs.LinuxResources) error {
	dirs, err := u.cgroups.Of(t.dir, t.livePid())
	if err != nil {
		return err
	}
	was, err := cgroup.NoteLimits(t.dir.Limits(), dirs, cgroup.LimitNames(r))
	if err != nil {
		return err
	}
	u.step.Pass("shim.update.intent")
	if err := u.setLimits(ctx, t, dirs, b, r); err != nil {
		if t.rec.Systemd { // systemd remembers limits and applies them again on a reload
			// Its error does not matter: the files are restored next, and they count until a
			// reload.
			_ = u.runUpdate(ctx, t, b.Previous, b.LockFile)
		}
		if back := cgroup.PutBack(was); back != nil {
			return fmt.Errorf("%w; and not all earlier limits could be restored: %v", err, back)
		}
		return errors.Join(err, os.Remove(t.dir.Limits()))
	}
	if err := os.Remove(t.dir.Limits()); err != nil {
		log.L.WithError(err).WithField("container", b.ID).Warn("cannot delete the saved limits of a finished update")
	}
	return nil
}

// setLimits executes the runtime's update and sets the limits that it does not.
func (u *updater) setLimits(ctx context.Context, t *task, dirs []string, b wire.Update, r specs.LinuxResources) error {
	if err := u.runUpdate(ctx, t, b.Resources, b.LockFile); err != nil {
		return err
	}
	u.step.Pass("shim.update.runc")
	if err := cgroup.SetHugepages(dirs, r.HugepageLimits); err != nil {
		return err
	}
	if b.OOMScoreAdj == nil {
		return nil
	}
	state := u.state.RuncState(t.rec.ID)
	was, err := oci.SetOOMScore(state, []byte(strconv.Itoa(*b.OOMScoreAdj)))
	if err != nil {
		return err
	}
	if err := u.cgroups.SetOOMScore(dirs, *b.OOMScoreAdj); err != nil {
		_, back := oci.SetOOMScore(state, was)
		return errors.Join(err, back)
	}
	return nil
}

// runUpdate executes the runtime's update.
func (u *updater) runUpdate(ctx context.Context, t *task, resources []byte, lockFile string) error {
	if lockFile == "" {
		lockFile = t.lockFile()
	}
	lock, err := u.driver.LockShared(ctx, lockFile)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.WriteFile(t.dir.Resources(), resources, 0o600); err != nil {
		return err
	}
	defer os.Remove(t.dir.Resources())
	return oci.ClassOfRefusal(u.driver.RunQuietly(ctx,
		oci.Command{Runtime: t.rec.Runtime, Systemd: t.rec.Systemd, Log: t.dir.RuntimeLog(), Wait: wire.UpdateWait,
			Extra: []*os.File{lock}, Args: []string{"update", "--resources", t.dir.Resources(), t.rec.ID}}))
}
