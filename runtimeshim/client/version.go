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

// A daemon finds a shim and a logger of any version. The logger is replaced by one of the daemon's
// build. The shim stays, and both speak the lower of their wire formats.

// isStale: it is of another build than we would start, and we have neither started it nor replaced
// one: what we start may be a script that executes another program.
func (p *peer) isStale(v wire.Version, ours *spawned) bool {
	return p.build != "" && v.Build != p.build && !p.replaced && ours == nil
}

// endStale asks a peer to quit and waits until it has, for a while. One that does not stays. The
// pidfd is closed.
func (p *peer) endStale(ctx context.Context, pidfd *os.File) {
	defer pidfd.Close()
	ctx, cancel := context.WithTimeout(ctx, staleWait)
	defer cancel()
	log.G(ctx).Infof("the %s is of another build and is replaced", p.name)
	_, err := wire.StreamIn(ctx, 1, p.sock, "quit", struct{}{}, nil, nil, func(json.RawMessage, []*os.File) error { return nil })
	if err == nil {
		err = procfd.WaitDead(ctx, pidfd)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warnf("the %s of another build stays", p.name)
	}
}

const staleWait = 3 * time.Second

// heard notes what the peer has said of itself.
func (p *peer) heard(v wire.Version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = v
}

// format is that in which to ask the peer.
func (p *peer) format() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lowerFormat(p.said.Format, wire.Format)
}

// lowerFormat is the newest format that both ends know.
func lowerFormat(theirs, ours int) int { return max(1, min(theirs, ours)) }

// call does one call in a format that the peer knows.
func (p *peer) call(ctx context.Context, verb string, body, out any) ([]*os.File, error) {
	return p.stream(ctx, verb, body, nil, out, func(json.RawMessage, []*os.File) error { return nil })
}

// stream is call for verbs that send replies before the last one.
func (p *peer) stream(ctx context.Context, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	return wire.StreamIn(ctx, p.format(), p.sock, verb, body, files, out, each)
}
