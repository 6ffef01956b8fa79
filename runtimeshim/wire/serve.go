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

// Handler answers one call. The returned value becomes the body of the last reply; an error keeps
// its errdefs class across the wire. ctx is cancelled when the caller closes its connection.
type Handler func(ctx context.Context, in *Inbound) (any, error)

// Inbound is one request, as passed to its handler.
type Inbound struct {
	Verb string
	// Files are closed after the handler has returned. To keep a file, the handler sets its entry
	// to nil.
	Files []*os.File

	body     json.RawMessage
	conn     *net.UnixConn
	attached []*os.File
	after    func(sent error)
}

// NewInbound returns a request without a connection: its handler must not call Send.
func NewInbound(verb string, body any) *Inbound {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err) // the body is a value of this program, so this is a bug
	}
	return &Inbound{Verb: verb, body: raw}
}

// Decode reads the body of the request into v. Returns ErrInvalidArgument if it does not fit.
func (in *Inbound) Decode(v any) error {
	if err := json.Unmarshal(in.body, v); err != nil {
		return fmt.Errorf("read body of %s: %v: %w", in.Verb, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Send writes a reply that is not the last one. The files still belong to the handler. Send must
// not be called concurrently.
func (in *Inbound) Send(body any, files ...*os.File) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return writeFrame(in.conn, reply{More: true, Body: raw}, files)
}

// Attach adds descriptors to the last reply and takes ownership of them: they are closed once the
// reply is written, even when the reply is an error.
func (in *Inbound) Attach(files ...*os.File) { in.attached = append(in.attached, files...) }

// Afterwards registers f to be called after the last reply, with the error from writing it.
func (in *Inbound) Afterwards(f func(sent error)) { in.after = f }

// Listen creates a socket with mode 0600 at path and replaces any file there. The caller must hold
// the lock that protects the name.
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

// Serve listens at path and answers calls until ctx ends. It creates the socket again if somebody
// removes it. The caller must hold the lock that protects the name. Returns an error only if the
// first attempt to listen fails; later ones are retried.
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

// awaitReplaced returns when path no longer refers to the file that it refers to now.
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
		// The event does not matter: the next Stat shows the result.
		_, _ = changes.Read(make([]byte, 4096))
	}
}

// watchFile returns a file that becomes readable when path is moved or loses a link.
func watchFile(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, path,
		unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_DONT_FOLLOW); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// serveOn answers calls until ctx ends or the listener is closed, closes the listener, and returns
// when every handler has returned: removing the socket does not end calls in progress.
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
			// Out of descriptors or memory: calls in progress free some when they end.
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		running.Go(func() { answer(ctx, conn, handlers) })
	}
}

// answer serves one connection. It closes connections of other users without a reply.
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
		// Read returns when the peer has closed, has sent more than it may, or we close.
		_, _ = conn.Read(make([]byte, 1))
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

// dispatch calls the handler. A panic of the handler fails only this call.
func dispatch(ctx context.Context, req request, in *Inbound, handlers map[string]Handler) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.L.Errorf("panic in %s: %v\n%s", req.Verb, p, debug.Stack())
			err = fmt.Errorf("panic in %s: %v", req.Verb, p)
		}
	}()
	if req.Format < 1 || req.Format > Format {
		return nil, fmt.Errorf("%s uses wire format %d, this build knows up to %d: %w",
			req.Verb, req.Format, Format, errdefs.ErrNotImplemented)
	}
	h, ok := handlers[req.Verb]
	if !ok {
		return nil, fmt.Errorf("verb %q: %w", req.Verb, errdefs.ErrNotImplemented)
	}
	return h(ctx, in)
}
