package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Handler answers one call. The returned value is the body of the last reply;
// an error keeps its errdefs class across the wire. ctx ends when the caller
// has closed its connection.
type Handler func(ctx context.Context, in *Inbound) (any, error)

// Inbound is one request as its handler sees it.
type Inbound struct {
	Verb  string
	Files []*os.File // closed after the handler has returned; set one to nil to keep it

	body     json.RawMessage
	conn     *net.UnixConn
	attached []*os.File
	after    func(sent error)
}

// NewInbound is a request that came over no connection: its handler cannot send.
func NewInbound(verb string, body any) *Inbound {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err) // of a body of this program
	}
	return &Inbound{Verb: verb, body: raw}
}

// Decode fills v with the body of the request. ErrInvalidArgument.
func (in *Inbound) Decode(v any) error {
	if err := json.Unmarshal(in.body, v); err != nil {
		return fmt.Errorf("read body of %s: %v: %w", in.Verb, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Send writes one reply that is not the last. The files stay the handler's.
// Not to be called from two goroutines at once.
func (in *Inbound) Send(body any, files ...*os.File) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return writeFrame(in.conn, reply{More: true, Body: raw}, files)
}

// Attach adds descriptors to the last reply and gives them away: they are
// closed once the reply is written, also when it is an error.
func (in *Inbound) Attach(files ...*os.File) { in.attached = append(in.attached, files...) }

// Afterwards has f called once the last reply is written, or cannot be.
func (in *Inbound) Afterwards(f func(sent error)) { in.after = f }

// Listen makes a 0600 socket at path, replacing what is there: the caller
// holds the lock that makes the name its own.
func Listen(path string) (*net.UnixListener, error) {
	tmp := path + ".new"
	if len(tmp) > maxSocketLen {
		return nil, fmt.Errorf("socket path %s is longer than %d bytes: %w", tmp, maxSocketLen, errdefs.ErrInvalidArgument)
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	return l, nil
}

// Serve is serve on a socket of its own at path, which it makes again when
// somebody has removed it. The caller holds the lock that makes the name its
// own. The error is that of the first attempt; later ones are repeated.
func Serve(ctx context.Context, path string, handlers map[string]Handler) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	l, err := Listen(path)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if l != nil {
			serving.Go(func() { _ = serveOn(ctx, l, handlers) })
			awaitReplaced(ctx, path)
			l.Close()
		}
		if l, err = Listen(path); err != nil {
			l = nil
			helper.Pause(ctx, time.Second)
		}
	}
	if l != nil {
		l.Close()
	}
	return nil
}

// awaitReplaced returns when path is no longer the file that it is now.
func awaitReplaced(ctx context.Context, path string) {
	mine, err := os.Stat(path)
	if err != nil {
		return
	}
	pause := socketCheck
	changes, err := watchFile(path)
	if err != nil {
		pause = unwatchedLook
	} else {
		defer changes.Close()
		defer context.AfterFunc(ctx, func() { changes.Close() })()
	}
	for ctx.Err() == nil {
		now, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(now, mine) {
			return
		}
		if changes == nil {
			helper.Pause(ctx, pause)
			continue
		}
		changes.SetReadDeadline(time.Now().Add(pause))
		_, _ = changes.Read(make([]byte, 4096)) // whatever it is, the next look tells
	}
}

// watchFile returns a file that can be read once something has happened to path: it lost a name, or
// it was moved.
func watchFile(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_DONT_FOLLOW); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// serveOn answers calls until ctx ends or the listener is closed, and returns
// when every handler has returned: a socket that somebody removed ends no call
// that came by it. The listener is closed then.
func serveOn(ctx context.Context, l *net.UnixListener, handlers map[string]Handler) error {
	var running sync.WaitGroup
	defer running.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors or memory: what is being answered frees some.
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		running.Go(func() { answer(ctx, conn, handlers) })
	}
}

// answer serves one connection. A peer of another user gets no word.
func answer(ctx context.Context, conn *net.UnixConn, handlers map[string]Handler) {
	defer conn.Close()
	if cred, err := PeerCred(conn); err != nil || cred.Uid != uint32(os.Geteuid()) {
		return
	}
	conn.SetReadDeadline(time.Now().Add(RequestWait))
	var req request
	files, err := readFrame(conn, &req)
	if err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // returns when the peer is gone, or breaks the protocol, or we close
		cancel()
	}()
	in := &Inbound{Verb: req.Verb, Files: files, body: req.Body, conn: conn}
	out := reply{}
	body, err := dispatch(ctx, req, in, handlers)
	if err == nil && body != nil {
		out.Body, err = json.Marshal(body)
	}
	if err != nil {
		out = reply{Error: toWire(err)}
	}
	sent := writeFrame(conn, out, in.attached)
	if in.after != nil {
		in.after(sent)
	}
	unixfd.CloseAll(in.Files)
	unixfd.CloseAll(in.attached)
}

// dispatch calls the handler. Its panic costs this call only.
func dispatch(ctx context.Context, req request, in *Inbound, handlers map[string]Handler) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.L.Errorf("panic in %s: %v\n%s", req.Verb, p, debug.Stack())
			err = fmt.Errorf("panic in %s: %v", req.Verb, p)
		}
	}()
	if req.Format < 1 || req.Format > Format {
		return nil, fmt.Errorf("%s in wire format %d, known is %d: %w", req.Verb, req.Format, Format, errdefs.ErrNotImplemented)
	}
	h, ok := handlers[req.Verb]
	if !ok {
		return nil, fmt.Errorf("verb %q: %w", req.Verb, errdefs.ErrNotImplemented)
	}
	return h(ctx, in)
}
