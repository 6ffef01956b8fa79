package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Peers returns the pids of the shim and the logger, as the kernel tells them: of the processes
// that listen at the sockets. A peer that is dead has none. An error means that it cannot be told
// now who they are.
//
// A pid is good for telling these processes from others. It is no handle: whoever sends a signal
// opens a pidfd first and looks again then.
func (k *Client) Peers(ctx context.Context) ([]int, error) {
	var pids []int
	for _, p := range []*peer{k.shim, k.logger} {
		pid, err := p.pid(ctx)
		if err != nil {
			return nil, fmt.Errorf("which process is the %s: %w", p.name, err)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// pid returns the pid of the living peer, 0 when none lives. It does not wait for an answer: a peer
// that hangs is known too.
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
