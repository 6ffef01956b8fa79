package client

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// peer is the shim or the logger, from the view of a client that restarts it when it dies.
type peer struct {
	name string
	sock string
	lock string // locked by the peer as long as it lives: not locked means dead
	home string // a folder that it locks as well
	log  string // file with its stderr
	c    Config

	mu    sync.Mutex
	pidfd *os.File     // of the process that answered last
	said  wire.Version // that process's version
	left  bool         // do not start it again

	build    string // a peer of another build is replaced once; "" = any build will do
	replaced bool   // used only by ensure

	outside bool // we have logged that it has no scope; used only by keep
}

func newPeer(name string, c Config, sock, lock, home, log string) *peer {
	return &peer{name: name, c: c, sock: sock, lock: lock, home: home, log: log}
}

// keep restarts the peer whenever it dies, until ctx ends.
func (p *peer) keep(ctx context.Context, pidfd *os.File) {
	const shortest, longest = 5 * time.Millisecond, 5 * time.Second
	pause := shortest
	for {
		began := time.Now()
		if pidfd != nil {
			p.waitApart(ctx, pidfd)
		}
		if time.Since(began) > longest {
			pause = shortest
		}
		select {
		case <-ctx.Done():
			p.set(nil)
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
		if p.isLeft() {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, connectWait)
		var next *os.File
		err := guard.Call(attempt, "the start of the "+p.name, func() (err error) {
			next, err = p.ensure(attempt)
			return err
		})
		cancel()
		if err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Errorf("cannot start the %s again; will retry", p.name)
		}
		pidfd = next
	}
}

func (p *peer) leave(left bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = left
}

func (p *peer) isLeft() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// set stores the pidfd of the living peer and closes the previous one.
func (p *peer) set(f *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd != nil {
		p.pidfd.Close()
	}
	p.pidfd = f
}

// waitGone waits until nobody holds the peer's lock.
func (p *peer) waitGone(ctx context.Context) error {
	for {
		if free, err := helper.LockFree(p.lock, p.home); err != nil || free {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the %s did not exit: %w", p.name, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ensure returns a pidfd of the peer that answers at the socket; the pidfd belongs to p, and the
// caller must not close it. If no peer is alive, ensure starts one. ErrUnavailable when a living
// peer does not answer before ctx ends.
func (p *peer) ensure(ctx context.Context) (*os.File, error) {
	var ours *spawned
	for pause := 3 * time.Millisecond; ; {
		pidfd, v, err := p.greet(ctx)
		if err == nil && p.isStale(v, ours) {
			p.replaced = true
			p.endStale(ctx, pidfd)
			continue
		}
		if err == nil {
			ours.unlessServing(ctx, pidfd)
			p.heard(v)
			p.set(pidfd)
			return pidfd, nil
		}
		if ours.hasEnded() {
			free, lockErr := helper.LockFree(p.lock, p.home)
			if lockErr != nil {
				return nil, lockErr
			}
			if free {
				if ours, err = p.start(); err != nil {
					return nil, err
				}
				telemetry.Add(ctx, telemetry.Starts, p.name, 1)
				// Do not restart at once a peer that ends at once.
				pause = min(2*pause, 500*time.Millisecond)
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the %s does not answer: %v (its log: %s): %w",
				p.name, err, logText(p.log), errdefs.ErrUnavailable)
		case <-time.After(pause):
		}
	}
}

// greet asks for the version and returns a pidfd of the process that answered.
func (p *peer) greet(ctx context.Context) (*os.File, wire.Version, error) {
	var v wire.Version
	conn, err := wire.Dial(ctx, p.sock)
	if err != nil {
		return nil, v, err
	}
	defer conn.Close()
	cred, err := wire.PeerCred(conn)
	if err != nil {
		return nil, v, err
	}
	pidfd, err := procfd.Open(int(cred.Pid))
	if err != nil {
		return nil, v, err
	}
	// It answers after the pidfd was opened, and reports the same pid: so it was alive when the
	// pidfd was opened, and the pid was its own.
	_, err = wire.Converse(ctx, conn, 1, "version", struct{}{}, nil, &v,
		func(json.RawMessage, []*os.File) error { return nil })
	if err == nil && v.Pid != int(cred.Pid) {
		err = fmt.Errorf("the %s reports pid %d, but the kernel reports %d: %w",
			p.name, v.Pid, cred.Pid, errdefs.ErrUnavailable)
	}
	if err != nil {
		pidfd.Close()
		return nil, v, err
	}
	return pidfd, v, nil
}

// spawned is a process that we have started to become the peer.
type spawned struct {
	pid   int
	ended chan struct{}
}

// hasEnded reports whether the process has ended; true for nil.
func (s *spawned) hasEnded() bool {
	if s == nil {
		return true
	}
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// unlessServing waits until the process has ended, unless it is the peer of pidfd. So it cannot
// take over later, after that peer has been asked to quit.
func (s *spawned) unlessServing(ctx context.Context, pidfd *os.File) {
	if s == nil {
		return
	}
	if pid, err := procfd.PidOf(pidfd); err != nil || pid == s.pid {
		return
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
}

// start executes the peer, detached from this process.
func (p *peer) start() (*spawned, error) {
	p.c.Step.Pass("client.spawn." + p.name)
	out, err := openPeerLog(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(p.c.Executable, p.name, "--state", filepath.Clean(p.c.State))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", helper.Env(), out, out
	if p.c.LogLevel != "" {
		cmd.Env = append(cmd.Env, helper.LogLevelEnv+"="+p.c.LogLevel)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", p.name, err)
	}
	s := &spawned{cmd.Process.Pid, make(chan struct{})}
	go func() {
		defer close(s.ended)
		_ = cmd.Wait() // its log says why
	}()
	return s, nil
}

// openPeerLog opens the file for a peer's stderr, and truncates it if it is large.
func openPeerLog(name string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if st, err := os.Stat(name); err == nil && st.Size() > 256<<10 {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(name, flags, 0o600)
}
