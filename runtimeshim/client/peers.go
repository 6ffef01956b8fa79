package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Peers returns the pids of the shim and the logger, according to the kernel: of the processes that
// listen at the sockets. Dead peers are left out. An error means that the pids cannot be determined
// now.
//
// The pids serve to tell these processes from others. Before it sends a signal, a caller must open
// a pidfd and check again.
func (k *Client) Peers(ctx context.Context) ([]int, error) {
	var pids []int
	for _, p := range []*peer{k.shim, k.logger} {
		pid, err := p.pid(ctx)
		if err != nil {
			return nil, fmt.Errorf("find the process of the %s: %w", p.name, err)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Helpers returns the shim and the logger, without one that does not answer before ctx ends.
func (k *Client) Helpers(ctx context.Context) []runtimeshim.Helper {
	var all []runtimeshim.Helper
	for _, p := range []*peer{k.shim, k.logger} {
		var v wire.Version
		if _, err := p.call(ctx, "version", struct{}{}, &v); err == nil {
			all = append(all, runtimeshim.Helper{Name: p.name, Pid: v.Pid, Goroutines: v.Goroutines})
		}
	}
	return all
}

// pid returns the pid of the living peer, 0 when it is dead. It does not wait for a reply, so it
// works for a peer that hangs.
func (p *peer) pid(ctx context.Context) (int, error) {
	if pid := p.lastPid(); pid > 0 {
		return pid, nil
	}
	conn, err := wire.Dial(ctx, p.sock)
	if errors.Is(err, wire.ErrNobody) {
		free, lockErr := helper.LockFree(p.lock, p.home)
		if lockErr == nil && free {
			return 0, nil
		}
		return 0, errors.Join(err, lockErr)
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	cred, err := wire.PeerCred(conn)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// lastPid returns the pid of the peer that answered last, 0 when that is dead.
func (p *peer) lastPid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return 0
	}
	pid, err := procfd.PidOf(p.pidfd)
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}
