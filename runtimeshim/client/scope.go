package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim/procfd"
)

// Time limits for moving a peer into its scope. Nothing else waits for that.
var (
	scopeCall  = 5 * time.Second  // for systemd's reply
	scopeJoin  = 3 * time.Second  // after this time a scope that still exists is joined
	scopeQuiet = 15 * time.Second // after this time a failure is logged
)

// waitApart waits until the peer is dead or ctx ends, like procfd.WaitDead, and meanwhile moves it
// into its scope.
func (p *peer) waitApart(ctx context.Context, pidfd *os.File) {
	alive, dead := context.WithCancel(ctx)
	var placing sync.WaitGroup
	placing.Go(func() {
		guard.Run(alive, "the scope of the "+p.name, func() { p.setApart(alive, pidfd) })
	})
	_ = procfd.WaitDead(ctx, pidfd) // ensure finds out what happened
	dead()
	placing.Wait()
}

// setApart moves the peer from the cgroup of the process that started it into a scope of its own,
// so that stopping or limiting the daemon's unit does not affect the peer. It returns when that is
// done, when ctx ends, or when it is impossible. Without systemd's help the peer stays where it is,
// and one line is logged.
//
// A dead peer's scope blocks the name until systemd has collected it, and a scope that is being
// stopped kills whatever joins it. So the first attempts ask for a new scope. A scope that stays,
// because processes of the dead peer live in it, is joined.
func (p *peer) setApart(ctx context.Context, pidfd *os.File) {
	if p.c.Scope == nil || !firstIsSystemd() {
		return
	}
	scope, began := p.c.Scope(p.name), time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Minute) {
		pid, err := procfd.PidOf(pidfd)
		if err != nil || pid <= 0 {
			return // the peer is dead
		}
		if isIn(unitOf(pid), scope) {
			p.placed(ctx, scope)
			return
		}
		if err = startScope(ctx, p.name, scope, pid); refused(err) && time.Since(began) > scopeJoin {
			err = errors.Join(err, joinScope(ctx, scope, pid))
		}
		missing := errors.Is(err, exec.ErrNotFound)
		if err != nil && ctx.Err() == nil && (missing || time.Since(began) > scopeQuiet) {
			p.notPlaced(ctx, scope, err)
		}
		if missing {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// notPlaced logs the failure, once until placed is called.
func (p *peer) notPlaced(ctx context.Context, scope string, err error) {
	if !p.outside {
		p.outside = true
		log.G(ctx).WithError(err).Warnf("the %s stays in the daemon's cgroup for now instead of %s: "+
			"stopping or limiting the daemon's unit affects it too", p.name, scope)
	}
}

// placed logs that the peer is in its scope, if a failure was logged before.
func (p *peer) placed(ctx context.Context, scope string) {
	if p.outside {
		p.outside = false
		log.G(ctx).Infof("the %s now runs in %s", p.name, scope)
	}
}

// startScope asks systemd to create a scope with the process in it (systemd.scope(5)). It returns
// once that has begun.
//
//   - Delegate: even if systemd does not support OOMPolicy for scopes, it does not end
//     the other processes when one, a runtime for example, is OOM-killed.
//   - DefaultDependencies: shutdown does not stop the scope. The shim lives until the
//     containers have ended, which is after the last unit.
//   - CollectMode: the name becomes free however the scope ends.
//   - KillSignal: the shim ignores SIGTERM, so stopping the scope would take until
//     systemd's timeout. Both may be killed at any instruction.
func startScope(ctx context.Context, name, scope string, pid int) error {
	properties := []string{
		"PIDs", "au", "1", strconv.Itoa(pid),
		"Description", "s", "cribox " + name,
		"Slice", "s", sliceFor(unitOf(os.Getpid())),
		"Delegate", "b", "true",
		"DefaultDependencies", "b", "false",
		"CollectMode", "s", "inactive-or-failed",
		"KillSignal", "i", strconv.Itoa(int(syscall.SIGKILL)),
		"TasksMax", "t", strconv.FormatUint(1<<64-1, 10), // infinity
	}
	call := append([]string{"StartTransientUnit", "ssa(sv)a(sa(sv))", scope, "fail", "8"}, properties...)
	return askSystemd(ctx, append(call, "0")...)
}

// joinScope adds the process to an existing scope.
func joinScope(ctx context.Context, scope string, pid int) error {
	return askSystemd(ctx, "AttachProcessesToUnit", "ssau", scope, "", "1", strconv.Itoa(pid))
}

// askSystemd calls a method of systemd's manager (org.freedesktop.systemd1(5)) with busctl, which
// is part of systemd. A D-Bus client library would cost memory in the shim and the logger of every
// node, for one call in their lifetime.
func askSystemd(ctx context.Context, call ...string) error {
	ctx, cancel := context.WithTimeout(ctx, scopeCall)
	defer cancel()
	const manager = "org.freedesktop.systemd1"
	cmd := exec.CommandContext(ctx, "busctl",
		append([]string{"call", manager, "/org/freedesktop/systemd1", manager + ".Manager"}, call...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("ask systemd for %s: %w: %s", call[0], err, strings.TrimSpace(string(out)))
}

// refused reports whether systemd answered with an error.
func refused(err error) bool {
	var ended *exec.ExitError
	return errors.As(err, &ended) && ended.Exited()
}

// firstIsSystemd reports whether process 1 of our pid namespace is systemd. Otherwise, in a
// container that has only the host's D-Bus socket, our pids would mean other processes to systemd.
func firstIsSystemd() bool {
	name, err := os.ReadFile(procfd.InitName)
	return err == nil && strings.TrimSpace(string(name)) == "systemd"
}

// unitOf returns the cgroup in which systemd places a process; "" when the process is gone.
func unitOf(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return unitIn(string(raw))
}

// unitIn finds that cgroup in the text of /proc/PID/cgroup: in the hierarchy name=systemd if there
// is one (version 1, and both versions together), otherwise in that of version 2.
func unitIn(cgroups string) string {
	v2 := ""
	for line := range strings.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && f[1] == "name=systemd" {
			return f[2]
		}
		if len(f) == 3 && f[1] == "" {
			v2 = f[2]
		}
	}
	return v2
}

// isIn reports whether the cgroup is that of the unit, or below it.
func isIn(cgroup, unit string) bool { return slices.Contains(strings.Split(cgroup, "/"), unit) }

// sliceFor returns the slice that contains cgroup, which is the daemon's slice as set by the
// administrator. It does not return a user's slice, which would end when the user logs out.
func sliceFor(cgroup string) string {
	for dir := cgroup; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if strings.HasSuffix(dir, ".slice") && !isIn(cgroup, "user.slice") {
			return path.Base(dir)
		}
	}
	return "system.slice"
}
