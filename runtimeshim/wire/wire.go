// Package wire carries calls between daemon, shim and logger: frames on unix
// sockets, and the bodies of the verbs. It does not know what a verb does.
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

// The wire between daemon, shim and logger.
//
// One call is one connection to a unix stream socket. A frame is a length (4
// bytes, big endian) and so many bytes of JSON; descriptors travel as
// SCM_RIGHTS with the first byte of their frame. The caller sends one request
// frame and gets reply frames: any number with "more", then the last one. The
// caller closing its connection cancels the context of the handler.
//
// Both ends may be of different versions: a shim lives as long as the node. The
// caller asks for the peer's version first, in format 1, and speaks the lower of
// both formats from then on. A server answers all formats from 1 to its own.
const (
	Format       = 1
	maxFrame     = 8 << 20 // the largest is an exec with 3 MiB of arguments, escaped
	MaxFiles     = 16
	RequestWait  = 10 * time.Second // a peer that connected must have sent its request by then
	sendWait     = 30 * time.Second // a peer that reads nothing for so long is dropped
	maxSocketLen = 107              // sun_path without the final NUL
)

// How often a server looks whether its socket is still there: the kernel tells what happens to the
// file, but not what happens to the folders above, and to nobody when it has no watches left.
var (
	socketCheck   = time.Minute
	unwatchedLook = 10 * time.Second
)

// ErrNobody: no process listens at the socket, so nothing of the call happened.
// ErrBroken: the peer went away after the request was sent; what happened is not known.
// Both are of class ErrUnavailable.
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

// Call sends one request and waits for its last reply, whose body goes into
// out (may be nil) and whose descriptors are returned, the caller's to close.
// files are duplicated by the kernel and stay the caller's.
func Call(ctx context.Context, socket, verb string, body any, files []*os.File, out any) ([]*os.File, error) {
	return Stream(ctx, socket, verb, body, files, out, func(json.RawMessage, []*os.File) error { return nil })
}

// Stream is call for verbs that send replies before the last one: each gets
// the body and the descriptors (the caller's to close) of every one of them,
// in order. An error of each ends the call and is returned.
func Stream(ctx context.Context, socket, verb string, body any, files []*os.File, out any,
	each func(json.RawMessage, []*os.File) error) ([]*os.File, error) {
	return StreamIn(ctx, Format, socket, verb, body, files, out, each)
}

// StreamIn is stream in a format that the peer knows.
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

// Dial connects to a socket of our own user. ErrNobody when no process listens there.
func Dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, ErrNobody
	case errors.Is(err, unix.EAGAIN): // the backlog is full: it lives, and is slow
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

// Converse does one call on an open connection.
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
		return fmt.Errorf("frame of %d bytes and %d descriptors, at most %d and %d: %w",
			len(raw), len(files), maxFrame, MaxFiles, errdefs.ErrInvalidArgument)
	}
	buf := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(raw)), uint32(len(raw))), raw...)
	conn.SetWriteDeadline(time.Now().Add(sendWait))
	n, _, err := conn.WriteMsgUnix(buf, unixfd.Rights(files), nil)
	if err != nil || n == len(buf) {
		return err // not even an empty write: the peer may have answered and gone
	}
	_, err = conn.Write(buf[n:])
	return err
}

// readFrame reads one frame into v and returns its descriptors (close-on-exec).
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
			return fmt.Errorf("frame of %d bytes, at most %d", size, maxFrame)
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

// PeerCred tells who is at the other end: for a server the process that
// connected, for a client the one that listens.
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
