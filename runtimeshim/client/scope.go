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

// How long a peer may be outside its scope, and who may be slow about it. Nobody waits for any of
// it.
var (
	scopeCall  = 5 * time.Second  // until systemd has answered
	scopeJoin  = 3 * time.Second  // until a scope that is still there is joined, not waited for
	scopeQuiet = 15 * time.Second // until the log says that it does not come to it
)

// waitApart waits until the peer is dead or ctx ends, as procfd.WaitDead does, and gives it a scope
// meanwhile.
func (p *peer) waitApart(ctx context.Context, pidfd *os.File) {
	alive, dead := context.WithCancel(ctx)
	var placing sync.WaitGroup
	placing.Go(func() {
		guard.Run(alive, "the scope of the "+p.name, func() { p.setApart(alive, pidfd) })
	})
	_ = procfd.WaitDead(ctx, pidfd) // ensure finds out what is the matter
	dead()
	placing.Wait()
}

// setApart moves the peer from the cgroup of whoever has started it into a
// scope of its own: what is done to the daemon's unit is done to the daemon
// alone. It returns when that is so, when ctx ends, and when it cannot be.
// Without systemd's help all goes on where it is; the log has one line then.
//
// A scope that a dead peer has left is in the way until systemd has collected
// it, and one that is being stopped kills whoever joins it: so the first tries
// are for a new one. One that stays, because something of the dead peer lives
// in it, is joined.
func (p *peer) setApart(ctx context.Context, pidfd *os.File) {
	if p.c.Scope == nil || !firstIsSystemd() {
		return
	}
	scope, began := p.c.Scope(p.name), time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Minute) {
		pid, err := procfd.PidOf(pidfd)
		if err != nil || pid <= 0 {
			return // it is dead
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

// notPlaced says so, once for all that become this peer.
func (p *peer) notPlaced(ctx context.Context, scope string, err error) {
	if !p.outside {
		p.outside = true
		log.G(ctx).WithError(err).Warnf("the %s stays in the daemon's cgroup for now, and not in %s: what ends or limits the one does so to the other", p.name, scope)
	}
}

// placed takes it back.
func (p *peer) placed(ctx context.Context, scope string) {
	if p.outside {
		p.outside = false
		log.G(ctx).Infof("the %s is in %s now", p.name, scope)
	}
}

// startScope has systemd make a scope around the process (systemd.scope(5)). It returns when that
// is begun.
//
//   - Delegate: also when systemd knows no OOMPolicy of scopes, a runtime that
//     is killed for its memory is no reason to end the others.
//   - DefaultDependencies: no shutdown stops it. The shim lives until the
//     containers have ended, which is after the last unit.
//   - CollectMode: the name is free again whatever the end was.
//   - KillSignal: the shim heeds no SIGTERM, so stopping the scope would last
//     as long as systemd is patient. Both may be killed at any instruction.
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

// joinScope adds the process to a scope that is there.
func joinScope(ctx context.Context, scope string, pid int) error {
	return askSystemd(ctx, "AttachProcessesToUnit", "ssau", scope, "", "1", strconv.Itoa(pid))
}

// askSystemd calls a method of its manager (org.freedesktop.systemd1(5)) by
// busctl, a part of systemd: a client of D-Bus would be the price that
// shim and logger pay in memory on every node, for a call in their lifetime.
func askSystemd(ctx context.Context, call ...string) error {
	ctx, cancel := context.WithTimeout(ctx, scopeCall)
	defer cancel()
	const manager = "org.freedesktop.systemd1"
	cmd := exec.CommandContext(ctx, "busctl", append([]string{"call", manager, "/org/freedesktop/systemd1", manager + ".Manager"}, call...)...)
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

// refused: there was an answer, and it was no.
func refused(err error) bool {
	var ended *exec.ExitError
	return errors.As(err, &ended) && ended.Exited()
}

// firstIsSystemd: the first process of our pid namespace is systemd. In a container that
// has no more than the host's socket, our numbers are those of other processes.
func firstIsSystemd() bool {
	name, err := os.ReadFile(procfd.InitName)
	return err == nil && strings.TrimSpace(string(name)) == "systemd"
}

// unitOf returns the cgroup in which systemd looks for a process; "" when it is gone.
func unitOf(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return unitIn(string(raw))
}

// unitIn finds it in the text of /proc/PID/cgroup: in the hierarchy that systemd names, which there
// is with cgroups of version 1 and with both versions, else in that of version 2.
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

// isIn: the cgroup is that of the unit, or below.
func isIn(cgroup, unit string) bool { return slices.Contains(strings.Split(cgroup, "/"), unit) }

// sliceFor returns the slice that cgroup lies in, which is the one that the administrator has given
// to the daemon. One of a user's would end when the user leaves.
func sliceFor(cgroup string) string {
	for dir := cgroup; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if strings.HasSuffix(dir, ".slice") && !isIn(cgroup, "user.slice") {
			return path.Base(dir)
		}
	}
	return "system.slice"
}
