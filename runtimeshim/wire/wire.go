// Package wire carries calls between daemon, shim and logger: frames on unix sockets, and the
// bodies of the verbs. It does not know what a verb does.
package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// The protocol between daemon, shim and logger.
//
// One call uses one connection to a unix stream socket. A frame is a length (4 bytes, big endian)
// followed by that many bytes of JSON; descriptors are sent as SCM_RIGHTS with the first byte of
// their frame. The caller sends one request frame and receives reply frames: any number with "more"
// set, then the last one. When the caller closes its connection, the context of the handler is
// cancelled.
//
// The two ends may be of different versions, because a shim lives as long as the node. The caller
// first asks for the peer's version, in format 1, and then uses the lower of both formats. A server
// supports all formats from 1 to its own.
const (
	Format       = 1
	maxFrame     = 8 << 20 // the largest frame is an exec with 3 MiB of arguments, escaped
	MaxFiles     = 16
	RequestWait  = 10 * time.Second // from connecting until the peer has sent its request
	sendWait     = 30 * time.Second // a peer that reads nothing for this long is disconnected
	maxSocketLen = 107              // sun_path without the final NUL
)

// How often a server checks that its socket still exists. The kernel reports changes of the file,
// but not of its parent folders, and reports nothing when no inotify watch is available.
var (
	socketCheck   = time.Minute
	unwatchedLook = 10 * time.Second
)

// ErrNobody: no process listens at the socket, so the call had no effect. ErrBroken: the peer
// closed the connection after the request was sent, so the effect is unknown. Both are of class
// ErrUnavailable.
var (
	ErrNobody = fmt.Errorf("nobody listens: %w", errdefs.ErrUnavailable)
	ErrBroken = fmt.Errorf("peer closed the connection: %w", errdefs.ErrUnavailable)
)

type request struct {
	Format int             `json:"format"`
	Verb   string          `json:"verb"`
	Body   json.RawMessage `json:"body,omitempty"`
}

type reply struct {
	Error *remoteError    `json:"error,omitempty"`
	More  bool            `json:"more,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Call sends one request and waits for the last reply. It decodes the reply's body into out, unless
// out is nil, and returns its descriptors, which the caller must close. files are duplicated by the
// kernel and still belong to the caller. Returns ErrNobody, ErrBroken, or the error of the handler.
func Call(ctx context.Context, socket, verb string, body any, files []*os.File, out any) ([]*os.File, error) {
	return Stream(ctx, socket, verb, body, files, out, func(json.RawMessage, []*os.File) error { return nil })
}

// Stream is Call for verbs that send several replies. It calls each, in order, with the body and
// the descriptors of every reply but the last; each must close the descriptors. An error from each
// ends the call and is returned.
func Stream(ctx context.Context, socket, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	return StreamIn(ctx, Format, socket, verb, body, files, out, each)
}

// StreamIn is Stream in a given format, which the peer must know.
func StreamIn(ctx context.Context, format int, socket, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	conn, err := Dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", socket, verb, err)
	}
	defer conn.Close()
	got, err := Converse(ctx, conn, format, verb, body, files, out, each)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return got, err
}

// StreamToEnd is StreamIn for what the peer has to undo when ctx ends: it then waits until the peer has
// done so, for most at most.
func StreamToEnd(ctx context.Context, most time.Duration, format int, socket, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	conn, err := Dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", socket, verb, err)
	}
	defer conn.Close()
	// The peer takes the end of what we send for ours, and can still answer.
	defer context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Now().Add(most))
		_ = conn.CloseWrite()
	})()
	got, err := Converse(context.WithoutCancel(ctx), conn, format, verb, body, files, out, each)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return got, err
}

// Dial connects to a socket of our own user. Returns ErrNobody when no process listens there,
// ErrUnavailable when the backlog is full, ErrPermissionDenied when another user listens.
func Dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, ErrNobody
	case errors.Is(err, unix.EAGAIN): // the peer is alive but slow
		return nil, fmt.Errorf("backlog is full: %w", errdefs.ErrUnavailable)
	case err != nil:
		return nil, err
	}
	conn := c.(*net.UnixConn)
	if cred, err := PeerCred(conn); err != nil || cred.Uid != uint32(os.Geteuid()) {
		conn.Close()
		return nil, fmt.Errorf("socket %s belongs to another user: %w", socket, errdefs.ErrPermissionDenied)
	}
	return conn, nil
}

// Converse does one call on an open connection, which it closes when ctx ends.
func Converse(ctx context.Context, conn *net.UnixConn, format int, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	if err := writeFrame(conn, request{Format: format, Verb: verb, Body: raw}, files); err != nil {
		return nil, fmt.Errorf("send %s: %v: %w", verb, err, ErrBroken)
	}
	for {
		var r reply
		got, err := readFrame(conn, &r)
		if err != nil {
			return nil, fmt.Errorf("wait for the reply to %s: %v: %w", verb, err, ErrBroken)
		}
		if r.Error != nil {
			unixfd.CloseAll(got)
			return nil, r.Error
		}
		if r.More {
			if err := each(r.Body, got); err != nil {
				return nil, err
			}
			continue
		}
		if out != nil {
			if err := json.Unmarshal(r.Body, out); err != nil {
				unixfd.CloseAll(got)
				return nil, fmt.Errorf("read the reply to %s: %w", verb, err)
			}
		}
		return got, nil
	}
}

func writeFrame(conn *net.UnixConn, v any, files []*os.File) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(raw) > maxFrame || len(files) > MaxFiles {
		return fmt.Errorf("frame of %d bytes and %d descriptors, the limits are %d and %d: %w",
			len(raw), len(files), maxFrame, MaxFiles, errdefs.ErrInvalidArgument)
	}
	buf := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(raw)), uint32(len(raw))), raw...)
	conn.SetWriteDeadline(time.Now().Add(sendWait))
	n, _, err := conn.WriteMsgUnix(buf, unixfd.Rights(files), nil)
	if err != nil || n == len(buf) {
		return err // no empty write either: the peer may already have replied and closed
	}
	_, err = conn.Write(buf[n:])
	return err
}

// readFrame reads one frame into v and returns its descriptors, which are close-on-exec.
func readFrame(conn *net.UnixConn, v any) ([]*os.File, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	files := unixfd.Received(oob[:oobn])
	err = func() error {
		if n == 0 {
			return io.EOF
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return fmt.Errorf("more than %d descriptors in a frame", MaxFiles)
		}
		if _, err := io.ReadFull(conn, head[n:]); err != nil {
			return err
		}
		size := binary.BigEndian.Uint32(head[:])
		if size > maxFrame {
			return fmt.Errorf("frame of %d bytes, the limit is %d", size, maxFrame)
		}
		buf := make([]byte, size)
		if _, err := io.ReadFull(conn, buf); err != nil {
			return err
		}
		return json.Unmarshal(buf, v)
	}()
	if err != nil {
		unixfd.CloseAll(files)
		return nil, err
	}
	return files, nil
}

// PeerCred returns the credentials of the peer: the process that connected, or on the client's side
// the process that listens.
func PeerCred(conn syscall.Conn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}
