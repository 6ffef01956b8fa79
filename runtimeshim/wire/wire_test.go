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
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// wireServer serves handlers at a socket until the test ends.
func wireServer(t *testing.T, handlers map[string]Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- serveOn(ctx, l, handlers) }()
	t.Cleanup(func() {
		cancel()
		<-done
		os.RemoveAll(dir)
	})
	return path
}

func TestWireKeepsErrorClasses(t *testing.T) {
	failures := make(chan error, 1)
	path := wireServer(t, map[string]Handler{"fail": func(context.Context, *Inbound) (any, error) { return nil, <-failures }})
	for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition,
		errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrPermissionDenied, errdefs.ErrDataLoss, errdefs.ErrNotImplemented,
		errdefs.ErrAborted, context.DeadlineExceeded, context.Canceled} {
		next := fmt.Errorf("make tea: %w", class)
		failures <- next
		_, err := Call(context.Background(), path, "fail", nil, nil, nil)
		if !errors.Is(err, class) || err.Error() != next.Error() {
			t.Errorf("sent %v, got %v", next, err)
		}
	}
	failures <- &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}
	if _, err := Call(context.Background(), path, "fail", nil, nil, nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a full disk is %v", err)
	}
	if _, err := Call(context.Background(), path, "unheard", nil, nil, nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("unknown verb: %v", err)
	}
	if _, err := Call(context.Background(), path+"x", "fail", nil, nil, nil); !errors.Is(err, ErrNobody) || !errdefs.IsUnavailable(err) {
		t.Errorf("no socket: %v", err)
	}
}

func TestWireSurvivesPanic(t *testing.T) {
	path := wireServer(t, map[string]Handler{
		"panic": func(context.Context, *Inbound) (any, error) { panic("oh") },
		"ok":    func(context.Context, *Inbound) (any, error) { return nil, nil },
	})
	if _, err := Call(context.Background(), path, "panic", nil, nil, nil); err == nil || err.Error() != "panic in panic: oh" {
		t.Error(err)
	}
	if _, err := Call(context.Background(), path, "ok", nil, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestWirePassesDescriptors(t *testing.T) {
	path := wireServer(t, map[string]Handler{"swap": func(_ context.Context, in *Inbound) (any, error) {
		if len(in.Files) != 2 {
			return nil, fmt.Errorf("got %d files", len(in.Files))
		}
		in.Files[0].WriteString("there")
		if err := in.Send("first", in.Files[1]); err != nil {
			return nil, err
		}
		in.Attach(in.Files[0])
		in.Files[0] = nil
		return "last", nil
	}})
	r, w, _ := os.Pipe()
	defer r.Close()
	var first []*os.File
	var last string
	files, err := Stream(context.Background(), path, "swap", nil, []*os.File{w, w}, &last, func(body json.RawMessage, got []*os.File) error {
		first = got
		return nil
	})
	w.Close()
	if err != nil || last != "last" || len(files) != 1 || len(first) != 1 {
		t.Fatalf("%v %q %d %d", err, last, len(files), len(first))
	}
	first[0].WriteString(" and")
	files[0].WriteString(" back")
	unixfd.CloseAll(append(first, files...))
	// EOF: no copy is open any more
	if text, err := io.ReadAll(r); string(text) != "there and back" || err != nil {
		t.Errorf("%q %v", text, err)
	}
}

func TestWireCancelsWhenCallerDisconnects(t *testing.T) {
	gone := make(chan struct{})
	in := make(chan struct{})
	path := wireServer(t, map[string]Handler{"wait": func(ctx context.Context, _ *Inbound) (any, error) {
		close(in)
		<-ctx.Done()
		close(gone)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-in; cancel() }()
	if _, err := Call(ctx, path, "wait", nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-gone
}

func TestWireRefuses(t *testing.T) {
	path := wireServer(t, map[string]Handler{"ok": func(context.Context, *Inbound) (any, error) { return nil, nil }})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", st.Mode(), err)
	}
	for name, frame := range map[string][]byte{
		"too large":  binary.BigEndian.AppendUint32(nil, maxFrame+1),
		"not JSON":   append(binary.BigEndian.AppendUint32(nil, 3), "abc"...),
		"half a one": append(binary.BigEndian.AppendUint32(nil, 100), "{}"...),
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Write(frame)
		c.(*net.UnixConn).CloseWrite()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: got an answer", name)
		}
		c.Close()
	}
	if _, err := Call(context.Background(), path, "ok", make([]byte, maxFrame), nil, nil); err == nil {
		t.Error("a body over the cap was sent")
	}
	c, _ := net.Dial("unix", path)
	defer c.Close()
	writeFrame(c.(*net.UnixConn), request{Format: Format + 1, Verb: "ok"}, nil)
	var r reply
	if _, err := readFrame(c.(*net.UnixConn), &r); err != nil || r.Error == nil || r.Error.Class != "not_implemented" {
		t.Errorf("a later format: %+v %v", r, err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x20{\"format\":1,\"verb\":\"start\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Skip()
		}
		unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
		unix.SetNonblock(fds[1], true)
		unix.Write(fds[1], data)
		unix.Close(fds[1])
		file := os.NewFile(uintptr(fds[0]), "")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Skip()
		}
		defer c.Close()
		var r request
		readFrame(c.(*net.UnixConn), &r)
	})
}
