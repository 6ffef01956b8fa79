package security

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

	"github.com/cribox/cribox/crictl-tests/harness"
	"github.com/cribox/cribox/crictl-tests/ledger"
)

// TestSEC34ManyExecs: twenty commands that print without end at the same time are bounded too.
func TestSEC34ManyExecs(t *testing.T) {
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	const many = 20
	grown := d.PeakOf(func() {
		done := make(chan error, many)
		for range many {
			go func() {
				_, err := c.TryExec(120, "sh", "-c", "head -c 50000000 /dev/zero; head -c 50000000 /dev/zero >&2")
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
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	before, flat := d.Goroutines(), d.Ledger()
	for range 50 {
		sizes := make(harness.Window, 3)
		for n := range uint16(3) {
			sizes <- remotecommand.TerminalSize{Width: 80 + n, Height: 25}
		}
		s := &harness.Session{Tty: true, Sizes: sizes}
		ctx, leave := context.WithCancel(context.Background())
		if err := s.Stream(ctx, "SPDY", c.ExecURL(s, "/no/such/program")); harness.ExitCode(err) != 127 {
			t.Fatalf("%v, %q", err, s.Stdout.String())
		}
		leave()
		close(sizes)
	}
	d.WantGoroutines(before)
	d.WantFlat(flat)
}

// TestSEC36AttachAndVanish: clients that attach and are cut off leave nothing in the daemon.
func TestSEC36AttachAndVanish(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Shell("while :; do echo x; usleep 10000; done"), harness.With(func(c *cri.ContainerConfig) { c.Stdin = true }))
	before, flat := d.Goroutines(), d.Ledger()
	for range 100 {
		s := &harness.Session{Stdin: harness.UnendingInput()}
		ended, leave := c.Attach("SPDY", s)
		s.Stdout.Wait(t, "x")
		leave()
		harness.AwaitStream(t, "the client", ended)
	}
	d.WantGoroutines(before)
	d.WantFlat(flat)
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
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	before, flat := d.Goroutines(), d.Ledger()
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
		sendHostile(d, c, name, send)
	}
	// A client that has not opened its streams is given half a minute, whether or not it is still there.
	d.Must(harness.Within(2*time.Minute, func() error {
		now := d.Goroutines()
		return harness.Unless(now <= before+5, "%d goroutines, %d before", now, before)
	}))
	d.WantFlat(flat)
	// More streams than a command has: nothing grows with them. The library forgets a few goroutines, and the command lives until the kernel
	// gives up what its client has sent too much.
	sendHostile(d, c, "streams without end", func(conn net.Conn) { floodStreams(conn, 50000) })
	if now := d.Goroutines(); now > before+500 {
		t.Errorf("%d goroutines, %d before", now, before)
	}
}

// sendHostile lets a client of exec send what it likes, and fails the test when that costs much or another client is not served after it.
func sendHostile(d *harness.Daemon, c *harness.Container, name string, send func(net.Conn)) {
	d.Helper()
	conn := upgraded(d, c.ExecURL(&harness.Session{Stdin: harness.UnendingInput()}, "cat"))
	grown := d.PeakOf(func() {
		send(conn)
		conn.Close()
		s := &harness.Session{}
		if err := s.Stream(context.Background(), "SPDY", c.ExecURL(s, "true")); err != nil {
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
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	s := &harness.Session{}
	address := c.ExecURL(s, "echo", "served")
	u, err := url.Parse(address)
	d.Must(err)
	flat := d.Ledger()
	for n := range 2000 {
		conn, err := net.Dial("tcp", u.Host)
		d.Must(err)
		defer conn.Close()
		if n%2 == 0 {
			fmt.Fprint(conn, "GET /exec/") // and no more
		}
	}
	if err := s.Stream(context.Background(), "SPDY", address); err != nil || s.Stdout.String() != "served\n" {
		t.Errorf("a client with a ticket: %v, %q", err, s.Stdout.String())
	}
	if now := len(d.Ledger()[ledger.Fds]); now > len(flat[ledger.Fds])+500 {
		t.Errorf("%d descriptors, %d before", now, len(flat[ledger.Fds]))
	}
	d.WantFlat(flat) // those that are left have a few seconds to say what they want
}
