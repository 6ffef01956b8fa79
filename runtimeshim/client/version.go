package client

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/containerd/log"

	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// A daemon may find a shim and a logger of any version. It replaces a logger of another build. It
// keeps the shim, and both use the lower of their wire formats.

// isStale reports whether the peer must be replaced because it is of another build. A peer that we
// have started ourselves, or that has been replaced once, stays, because our executable may be a
// script that executes another program.
func (p *peer) isStale(v wire.Version, ours *spawned) bool {
	return p.build != "" && v.Build != p.build && !p.replaced && ours == nil
}

// endStale asks a peer to quit, waits for its end up to staleWait, and closes pidfd. A peer that
// does not quit stays.
func (p *peer) endStale(ctx context.Context, pidfd *os.File) {
	defer pidfd.Close()
	ctx, cancel := context.WithTimeout(ctx, staleWait)
	defer cancel()
	log.G(ctx).Infof("replacing the %s, which is of another build", p.name)
	_, err := wire.StreamIn(ctx, 1, p.sock, "quit", struct{}{}, nil, nil,
		func(json.RawMessage, []*os.File) error { return nil })
	if err == nil {
		err = procfd.WaitDead(ctx, pidfd)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warnf("cannot replace the %s of another build; keeping it", p.name)
	}
}

const staleWait = 3 * time.Second

// heard stores the version that the peer reported.
func (p *peer) heard(v wire.Version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = v
}

// format returns the wire format for requests to the peer.
func (p *peer) format() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lowerFormat(p.said.Format, wire.Format)
}

// lowerFormat returns the newest format that both ends know.
func lowerFormat(theirs, ours int) int { return max(1, min(theirs, ours)) }

// call does one call, in a format that the peer knows.
func (p *peer) call(ctx context.Context, verb string, body, out any) ([]*os.File, error) {
	return p.stream(ctx, verb, body, nil, out, func(json.RawMessage, []*os.File) error { return nil })
}

// stream is call for verbs that send several replies.
func (p *peer) stream(ctx context.Context, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	return wire.StreamIn(ctx, p.format(), p.sock, verb, body, files, out, each)
}
