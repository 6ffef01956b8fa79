package runtimeshim

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// A daemon finds a shim and a logger of any version. The logger is replaced by one of the daemon's
// build. The shim stays, and both speak the lower of their wire formats.

// ownBuild is the build of this program; tests change it.
var ownBuild = func() string { return buildOf("/proc/self/exe") }

// buildOf names the build of a program: Go's build id, or else which file it is. "" when it cannot
// be read.
func buildOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 64<<10))
	if id := goBuildID(head); id != "" {
		return id
	}
	var st unix.Stat_t
	if err := unix.Fstat(fdOf(f), &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d:%d.%d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
}

// goBuildID finds the note that the linker puts near the start of a program: the lengths of name and
// text, type 4, the name "Go".
func goBuildID(head []byte) string {
	mark := []byte("\x04\x00\x00\x00Go\x00\x00")
	for at := bytes.Index(head, mark); at >= 8; {
		size := int(binary.LittleEndian.Uint32(head[at-4:]))
		text := head[at+len(mark):]
		if binary.LittleEndian.Uint32(head[at-8:]) == 4 && size > 0 && size <= min(len(text), 512) {
			return string(text[:size])
		}
		next := bytes.Index(text, mark)
		if next < 0 {
			break
		}
		at += len(mark) + next
	}
	return ""
}

// isStale: it is of another build than we would start, and we have neither started it nor replaced
// one: what we start may be a script that executes another program.
func (p *peer) isStale(v versionReply, ours *spawned) bool {
	return p.build != "" && v.Build != p.build && !p.replaced && ours == nil
}

// endStale asks a peer to quit and waits until it has, for a while. One that does not stays. The
// pidfd is closed.
func (p *peer) endStale(ctx context.Context, pidfd *os.File) {
	defer pidfd.Close()
	ctx, cancel := context.WithTimeout(ctx, staleWait)
	defer cancel()
	log.G(ctx).Infof("the %s is of another build and is replaced", p.name)
	_, err := streamIn(ctx, 1, p.sock, "quit", struct{}{}, nil, nil, func(json.RawMessage, []*os.File) error { return nil })
	if err == nil {
		err = waitDead(ctx, pidfd)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warnf("the %s of another build stays", p.name)
	}
}

const staleWait = 3 * time.Second

// heard notes what the peer has said of itself.
func (p *peer) heard(v versionReply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = v
}

// format is that in which to ask the peer.
func (p *peer) format() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lowerFormat(p.said.Format, wireFormat)
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
	return streamIn(ctx, p.format(), p.sock, verb, body, files, out, each)
}
