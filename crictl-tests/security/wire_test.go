package security

import (
	"bytes"
	"context"
	bytesof "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// wire is a client of the socket that writes its own frames of HTTP/2.
type wire struct {
	testing.TB
	net.Conn
	*http2.Framer
	headers bytes.Buffer
	packer  *hpack.Encoder
}

const (
	versionCall = "/runtime.v1.RuntimeService/Version"
	eventsCall  = "/runtime.v1.RuntimeService/GetContainerEvents"
)

// dialWire connects and says hello.
func dialWire(d *harness.Daemon) *wire {
	d.Helper()
	w := connect(d)
	_, err := io.WriteString(w, http2.ClientPreface)
	d.Must(err)
	d.Must(w.WriteSettings())
	return w
}

// connect connects and says nothing. What waits for bytes that do not come ends with the test's patience.
func connect(d *harness.Daemon) *wire {
	d.Helper()
	conn, err := net.Dial("unix", d.Socket)
	d.Must(err)
	d.Cleanup(func() { conn.Close() })
	d.Must(conn.SetDeadline(time.Now().Add(2 * harness.Patience)))
	w := &wire{TB: d.TB, Conn: conn, Framer: http2.NewFramer(conn, conn)}
	w.AllowIllegalWrites = true
	w.packer = hpack.NewEncoder(&w.headers)
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return w
}

// request is the headers of a call as a client of gRPC would send them, but for the path.
func (w *wire) request(path string, more ...hpack.HeaderField) []byte {
	w.headers.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path}, {Name: ":authority", Value: "localhost"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		_ = w.packer.WriteField(f) // into memory
	}
	return w.headers.Bytes()
}

// open begins a call; its message is still to come.
func (w *wire) open(stream uint32, path string) error {
	return w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: w.request(path), EndHeaders: true})
}

// call sends a call with an empty message.
func (w *wire) call(stream uint32, path string) error {
	return errors.Join(w.open(stream, path), w.WriteData(stream, true, make([]byte, 5)))
}

// answer reads to the end of a stream and returns its grpc-status; "" when the server ended the stream or the connection without one.
func (w *wire) answer(stream uint32) (grpcStatus string) {
	w.Helper()
	for {
		f, err := w.ReadFrame()
		if errors.Is(err, io.EOF) || err != nil && !errors.As(err, new(http2.StreamError)) {
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				w.Error("the daemon says nothing")
			}
			return ""
		}
		if err != nil || f.Header().StreamID != stream {
			continue
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.RegularFields() {
				if h.Name == "grpc-status" {
					return h.Value
				}
			}
		case *http2.RSTStreamFrame:
			return ""
		}
	}
}

// TestSEC40Paths: a path that is no method's is Unimplemented or no call at all; without its slash it is not the method's.
func TestSEC40Paths(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	w := dialWire(d)
	stream := uint32(1)
	ask := func(path string) string {
		d.Must(w.call(stream, path))
		defer func() { stream += 2 }()
		return w.answer(stream)
	}
	if got := ask(versionCall); got != "0" {
		t.Fatalf("a good call has status %q: this test proves nothing", got)
	}
	for _, path := range []string{
		versionCall[1:], "//" + versionCall[1:], "/." + versionCall, versionCall + "/", "/runtime.v1.RuntimeService/", "/runtime.v1.RuntimeService", "/", "//", "*",
		"/runtime.v1alpha2.RuntimeService/Version", "/RUNTIME.V1.RuntimeService/Version", "/runtime.v1.RuntimeService%2FVersion", "http://x" + versionCall,
		versionCall + "?x", "/x/../runtime.v1.RuntimeService/Version", "/" + strings.Repeat("x", 10000),
	} {
		if got := ask(path); got != "12" {
			t.Errorf("path %.60q: status %q, want 12 (Unimplemented)", path, got)
		}
	}
	if got := ask("/runtime.v1.RuntimeService/Version\x00"); got != "" {
		t.Errorf("a path with a byte that no header may have: status %q", got)
	}
	if got := ask(versionCall); got != "0" {
		t.Errorf("a good call on the same connection: status %q", got)
	}
}

// TestSEC40Frames: whatever a client of the socket sends, it costs the daemon little and others are served.
func TestSEC40Frames(t *testing.T) {
	d := harness.NewDaemon(t)
	before, flat := d.Goroutines(), d.Ledger()
	frame := func(kind http2.FrameType, flags http2.Flags, stream uint32, payload ...byte) func(*wire) {
		return func(w *wire) { _ = w.WriteRawFrame(kind, flags, stream, payload); w.drain() }
	}
	for name, send := range map[string]func(*wire){
		"noise":                      func(w *wire) { _, _ = io.CopyN(w, endless{}, 1<<24) },
		"data of no stream":          frame(http2.FrameData, 0, 0, 1, 2, 3),
		"data of a stream to come":   frame(http2.FrameData, 0, 99, 1, 2, 3),
		"a stream of the server's":   func(w *wire) { _ = w.open(2, versionCall); w.drain() },
		"a push from a client":       frame(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, 0, 0, 0, 2),
		"a window beyond its end":    frame(http2.FrameWindowUpdate, 0, 0, 0x7f, 0xff, 0xff, 0xff),
		"settings of five bytes":     frame(http2.FrameSettings, 0, 0, 1, 2, 3, 4, 5),
		"settings out of range":      frame(http2.FrameSettings, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff, 0, 5, 0, 0, 0, 1),
		"continuation of nothing":    frame(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, 0x82),
		"headers that do not unpack": frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"padding beyond the frame":   frame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, 0xff, 0x82),
		"a frame of 16 MiB": func(w *wire) {
			_, _ = w.Write([]byte{0xff, 0xff, 0xff, byte(http2.FrameData), 0, 0, 0, 0, 1})
			_, _ = io.CopyN(w, endless{}, 1<<24-1)
		},
		"headers without end": func(w *wire) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.request(versionCall)})
			for range 20000 {
				if w.WriteContinuation(1, false, w.manyFields()) != nil {
					return
				}
			}
		},
		"small headers that unpack to many": func(w *wire) {
			block := bytes.Clone(w.request(versionCall, hpack.HeaderField{Name: "x", Value: strings.Repeat("v", 4000)}))
			block = append(block, bytes.Repeat([]byte{0x80 | 62}, 16000-len(block))...) // the newest of the table, again and again
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
			w.drain()
		},
		"a message of 4 GiB": func(w *wire) {
			_ = w.open(1, versionCall)
			_ = w.WriteData(1, false, bytesof.BigEndian.AppendUint32([]byte{0}, 1<<32-1))
			if got := w.answer(1); got != "8" {
				t.Errorf("a message of 4 GiB: status %q, want 8 (ResourceExhausted)", got)
			}
		},
		"a compressed message": func(w *wire) {
			_ = w.open(1, versionCall)
			_ = w.WriteData(1, true, append([]byte{1, 0, 0, 0, 4}, "gzip"...))
			if got := w.answer(1); got == "0" || got == "" {
				t.Errorf("a compressed message of no known kind: status %q", got)
			}
		},
	} {
		sendFrames(d, name, 32<<20, func() *wire { return dialWire(d) }, send)
	}
	sendFrames(d, "noise in place of a hello", 32<<20, func() *wire { return connect(d) }, func(w *wire) { _, _ = io.CopyN(w, endless{}, 1<<20) })
	d.WantGoroutines(before)
	d.WantFlat(flat)
}

// drain reads until the server has ended the connection, or has answered what it had to.
func (w *wire) drain() {
	_ = w.WritePing(false, [8]byte{'l', 'a', 's', 't'})
	for {
		f, err := w.ReadFrame()
		if err != nil && !errors.As(err, new(http2.StreamError)) {
			return
		}
		if ping, ok := f.(*http2.PingFrame); ok && ping.IsAck() && ping.Data == [8]byte{'l', 'a', 's', 't'} {
			return
		}
	}
}

// manyFields is most of a frame, full of fields that no table keeps.
func (w *wire) manyFields() []byte {
	w.headers.Reset()
	for w.headers.Len() < 16000 {
		_ = w.packer.WriteField(hpack.HeaderField{Name: "x", Value: "y", Sensitive: true})
	}
	return w.headers.Bytes()
}

// sendFrames lets a client do what it likes, while and after which others are served and the daemon has grown by at most so many bytes.
func sendFrames(d *harness.Daemon, name string, most int64, connect func() *wire, send func(*wire)) {
	d.Helper()
	grown := d.PeakOf(func() {
		w := connect()
		send(w)
		wantServed(d, name)
		w.Close()
		wantServed(d, name)
	})
	if grown > most {
		d.Errorf("%s: the daemon grew by %d MiB", name, grown>>20)
	}
}

// wantServed asks on a connection that is there and on a new one.
func wantServed(d *harness.Daemon, after string) {
	d.Helper()
	if _, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{}); err != nil {
		d.Errorf("after %s: %v", after, err)
	}
	w := dialWire(d)
	defer w.Close()
	d.Must(w.call(1, versionCall))
	if got := w.answer(1); got != "0" {
		d.Errorf("after %s, on a new connection: status %q", after, got)
	}
}

// TestSEC40ManyStreams: streams that are opened and given up, streams that are never used, answers that nobody reads.
func TestSEC40ManyStreams(t *testing.T) {
	d := harness.NewDaemon(t)
	before, flat := d.Goroutines(), d.Ledger()
	for name, send := range map[string]func(*wire){
		"streams that are reset at once": func(w *wire) {
			for n := range uint32(30_000) {
				if errors.Join(w.open(2*n+1, versionCall), w.WriteRSTStream(2*n+1, http2.ErrCodeCancel)) != nil {
					return
				}
			}
		},
		"calls that are never made": func(w *wire) {
			go func() { _, _ = io.Copy(io.Discard, w.Conn) }()
			for n := range uint32(20_000) {
				if w.open(2*n+1, versionCall) != nil {
					return
				}
			}
		},
		"events for many who do not read": func(w *wire) {
			go func() { _, _ = io.Copy(io.Discard, w.Conn) }()
			for n := range uint32(20_000) {
				if w.call(2*n+1, eventsCall) != nil {
					return
				}
			}
		},
		"answers that nobody reads": func(w *wire) {
			_ = w.SetWriteDeadline(time.Now().Add(2 * time.Second)) // the daemon stops to read, too
			for n := range uint32(30_000) {
				if w.call(2*n+1, versionCall) != nil {
					return
				}
			}
		},
		"pings and settings, answers unread": func(w *wire) {
			_ = w.SetWriteDeadline(time.Now().Add(2 * time.Second))
			for range 300_000 {
				if errors.Join(w.WritePing(false, [8]byte{}), w.WriteSettings()) != nil {
					return
				}
			}
		},
	} {
		sendFrames(d, name, 128<<20, func() *wire { return dialWire(d) }, send)
	}
	d.WantGoroutines(before)
	d.WantFlat(flat)
}

// TestSEC40SlowClients: clients that connect and do not say hello are let go.
func TestSEC40SlowClients(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	const many = 500
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Process.PID()))
		d.Must(err)
		return len(entries)
	}
	before := descriptors()
	for n := range many {
		_, err := io.WriteString(connect(d), http2.ClientPreface[:n%len(http2.ClientPreface)])
		d.Must(err)
	}
	wantServed(d, "slow clients")
	if now := descriptors(); now < before+many/2 {
		t.Errorf("%d descriptors, %d before %d clients: this test proves nothing", now, before, many)
	}
	harness.Eventually(t, "the daemon to let go of them", func() error {
		now := descriptors()
		return harness.Unless(now <= before+5, "%d descriptors, %d before", now, before)
	})
}
