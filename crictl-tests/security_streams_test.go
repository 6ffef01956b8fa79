package crictltests

import (
	"bufio"
	"context"
	bytesof "encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/moby/spdystream/spdy"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// wantGoroutines waits until there are hardly more goroutines than there were.
func (d *daemon) wantGoroutines(before int) {
	d.Helper()
	eventually(d, "goroutines to end", func() error {
		now := d.goroutines()
		return unless(now <= before+5, "%d of them, %d before", now, before)
	})
}

// TestSEC34ManyExecs: twenty commands that print without end at the same time are bounded too.
func TestSEC34ManyExecs(t *testing.T) {
	d := newDaemon(t)
	c := d.runPod().run(idle())
	const many = 20
	grown := d.peakOf(func() {
		done := make(chan error, many)
		for range many {
			go func() {
				_, err := c.tryExec(120, "sh", "-c", "head -c 50000000 /dev/zero; head -c 50000000 /dev/zero >&2")
				done <- err
			}()
		}
		for range many {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	if grown > many*80<<20 {
		t.Errorf("the daemon grew by %d MiB", grown>>20)
	}
}

// TestSEC35TerminalNotStarted: a terminal's sizes are read and forgotten when its program does not exist.
func TestSEC35TerminalNotStarted(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	before, flat := d.goroutines(), d.ledger()
	for range 50 {
		sizes := make(window, 3)
		for n := range uint16(3) {
			sizes <- remotecommand.TerminalSize{Width: 80 + n, Height: 25}
		}
		s := &session{tty: true, sizes: sizes}
		ctx, leave := context.WithCancel(context.Background())
		if err := s.stream(ctx, "SPDY", c.execURL(s, "/no/such/program")); exitCode(err) != 127 {
			t.Fatalf("%v, %q", err, s.stdout.String())
		}
		leave()
		close(sizes)
	}
	d.wantGoroutines(before)
	d.wantFlat(flat)
}

// TestSEC36AttachAndVanish: clients that attach and are cut off leave nothing in the daemon.
func TestSEC36AttachAndVanish(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(shell("while :; do echo x; usleep 10000; done"), with(func(c *cri.ContainerConfig) { c.Stdin = true }))
	before, flat := d.goroutines(), d.ledger()
	for range 100 {
		s := &session{stdin: ahead()}
		ended, leave := c.attach("SPDY", s)
		s.stdout.wait(t, "x")
		leave()
		await(t, "the client", ended)
	}
	d.wantGoroutines(before)
	d.wantFlat(flat)
}

// upgraded begins to stream like a SPDY client and returns the connection after the server has agreed.
func upgraded(t testing.TB, address string) net.Conn {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", u.Path)
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("no upgrade: %v, %v", r, err)
	}
	return conn
}

// TestSEC38Frames: what a client of exec may send by way of a kubelet that passes on its bytes costs the daemon little, and it goes on.
func TestSEC38Frames(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	before, flat := d.goroutines(), d.ledger()
	hostile := map[string]func(net.Conn){
		"settings that announce 2^32 entries": func(conn net.Conn) {
			_, _ = conn.Write(bytesof.BigEndian.AppendUint32([]byte{0x80, 3, 0, 4, 0, 0, 0, 4}, 1<<32-1))
			_, _ = io.Copy(io.Discard, conn)
		},
		"a frame of 16 MiB": func(conn net.Conn) {
			_, _ = conn.Write([]byte{0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff})
			_, _ = io.CopyN(conn, endless{}, 1<<24)
		},
		"resets without end": func(conn net.Conn) {
			for id := uint32(1); id < 1<<18; id += 2 {
				frame := bytesof.BigEndian.AppendUint32([]byte{0x80, 3, 0, 3, 0, 0, 0, 8}, id)
				if _, err := conn.Write(bytesof.BigEndian.AppendUint32(frame, 5)); err != nil {
					return
				}
			}
		},
		"nothing but noise": func(conn net.Conn) { _, _ = io.CopyN(conn, endless{}, 1<<20) },
	}
	for name, send := range hostile {
		d.sendHostile(c, name, send)
	}
	// A client that has not opened its streams is given half a minute, whether or not it is still there.
	d.must(within(2*time.Minute, func() error {
		now := d.goroutines()
		return unless(now <= before+5, "%d goroutines, %d before", now, before)
	}))
	d.wantFlat(flat)
	// More streams than a command has: nothing grows with them. The library forgets a few goroutines, and the command lives until the kernel
	// gives up what its client has sent too much.
	d.sendHostile(c, "streams without end", func(conn net.Conn) { floodStreams(conn, 50000) })
	if now := d.goroutines(); now > before+500 {
		t.Errorf("%d goroutines, %d before", now, before)
	}
}

// sendHostile lets a client of exec send what it likes, and fails the test when that costs much or another client is not served after it.
func (d *daemon) sendHostile(c *container, name string, send func(net.Conn)) {
	d.Helper()
	conn := upgraded(d, c.execURL(&session{stdin: ahead()}, "cat"))
	grown := d.peakOf(func() {
		send(conn)
		conn.Close()
		s := &session{}
		if err := s.stream(context.Background(), "SPDY", c.execURL(s, "true")); err != nil {
			d.Errorf("after %s: %v", name, err)
		}
	})
	if grown > 64<<20 {
		d.Errorf("%s: the daemon grew by %d MiB", name, grown>>20)
	}
}

// endless is zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func floodStreams(conn net.Conn, many int) {
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	framer, err := spdy.NewFramer(conn, conn)
	if err != nil {
		return
	}
	for n := range many {
		headers := http.Header{}
		headers.Set("streamType", "stdin")
		frame := &spdy.SynStreamFrame{StreamId: spdy.StreamId(2*n + 1), Headers: headers}
		if framer.WriteFrame(frame) != nil {
			return
		}
	}
}

// TestSEC38IdleClients: clients without a ticket, as many as a user of the node likes, are neither kept nor in the way of one who has a ticket.
func TestSEC38IdleClients(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	s := &session{}
	address := c.execURL(s, "echo", "served")
	u, err := url.Parse(address)
	d.must(err)
	flat := d.ledger()
	for n := range 2000 {
		conn, err := net.Dial("tcp", u.Host)
		d.must(err)
		defer conn.Close()
		if n%2 == 0 {
			fmt.Fprint(conn, "GET /exec/") // and no more
		}
	}
	if err := s.stream(context.Background(), "SPDY", address); err != nil || s.stdout.String() != "served\n" {
		t.Errorf("a client with a ticket: %v, %q", err, s.stdout.String())
	}
	if now := len(d.ledger()[ledger.Fds]); now > len(flat[ledger.Fds])+500 {
		t.Errorf("%d descriptors, %d before", now, len(flat[ledger.Fds]))
	}
	d.wantFlat(flat) // those that are left have a few seconds to say what they want
}
