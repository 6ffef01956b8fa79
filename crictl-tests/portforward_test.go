package crictltests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// carriers are how clients bring the connections of a port-forward: kubelet and crictl by SPDY, or by SPDY within WebSocket.
var carriers = map[string]func(*url.URL) (httpstream.Dialer, error){
	"SPDY": func(u *url.URL) (httpstream.Dialer, error) {
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u), err
	},
	"WebSocket": func(u *url.URL) (httpstream.Dialer, error) {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
	},
}

// forward opens one client's connection for the ports of a pod; it ends with the test.
func (p *pod) forward(carrier string) (line httpstream.Connection, leave func()) {
	p.Helper()
	r, err := p.runtime.PortForward(context.Background(), &cri.PortForwardRequest{PodSandboxId: p.id})
	p.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	p.Cleanup(cancel)
	address, err := lineFor(ctx, r.Url)
	p.must(err)
	u, err := url.Parse(address)
	p.must(err)
	dialer, err := carriers[carrier](u)
	p.must(err)
	conn, _, err := dialer.Dial("portforward.k8s.io")
	p.must(err)
	return conn, cancel
}

// dialPort opens one connection to a port, and the stream on which the runtime complains about it.
func dialPort(t testing.TB, line httpstream.Connection, request, port int) (data, complaint httpstream.Stream) {
	t.Helper()
	headers := http.Header{}
	headers.Set("port", strconv.Itoa(port))
	headers.Set("requestID", strconv.Itoa(request))
	var streams []httpstream.Stream
	for _, kind := range []string{"error", "data"} {
		headers.Set("streamType", kind)
		s, err := line.CreateStream(headers.Clone())
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	return streams[1], streams[0]
}

// TestPortForward: pod and host network, IPv4 and IPv6, many bytes, and an answer that comes when the client has said all.
func TestPortForward(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for name, options := range map[string][]podOption{"pod network": nil, "host network": {onHostNetwork}} {
		t.Run(name, func(t *testing.T) {
			p := d.runPod(options...)
			port := 21000 + int(names.Add(1)) // on the host's network it must be free
			p.run(d.tool("listen", fmt.Sprintf("127.0.0.1:%d", port), "cat"))
			p.run(d.tool("listen", fmt.Sprintf("127.0.0.1:%d", port+1000), "wc", "-c"))
			p.run(d.tool("listen", fmt.Sprintf("[::1]:%d", port+2000), "cat"))
			for _, listens := range []int{port, port + 1000, port + 2000} {
				p.waitListening(listens)
			}
			for carrier := range carriers {
				line, _ := p.forward(carrier)
				defer line.Close()
				sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
				for request, row := range []struct {
					port int
					want string
				}{{port, string(sent)}, {port + 1000, fmt.Sprintln(len(sent))}, {port + 2000, string(sent)}} {
					data, complaint := dialPort(t, line, request, row.port)
					go func() {
						_, _ = data.Write(sent)
						data.Close() // our side: "wc" answers only then
					}()
					got, err := io.ReadAll(data)
					if err != nil || string(got) != row.want {
						t.Errorf("%s, port %d: %d bytes, %v, want %d", carrier, row.port, len(got), err, len(row.want))
					}
					if text, _ := io.ReadAll(complaint); len(text) > 0 {
						t.Errorf("%s, port %d: %s", carrier, row.port, text)
					}
				}
				_, complaint := dialPort(t, line, 9, 9)
				if text, err := io.ReadAll(complaint); err != nil || !strings.Contains(string(text), "refused") {
					t.Errorf("a port where nobody listens, by %s: %q, %v", carrier, text, err)
				}
			}
		})
	}
}

// waitListening waits until somebody listens at the port.
func (p *pod) waitListening(port int) {
	p.Helper()
	eventually(p, "a listener at port "+strconv.Itoa(port), func() error { return unless(p.hasSocket(port, "0A"), "nobody listens") })
}

// connected says whether a connection to the port is established.
func (p *pod) connected(port int) bool { return p.hasSocket(port, "01") }

// hasSocket looks for a socket of the pod's network with this local port and state, as the kernel numbers states.
func (p *pod) hasSocket(port int, state string) bool {
	p.Helper()
	local := fmt.Sprintf(":%04X", port)
	for _, file := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.processesOf(p.id)[0].Pid, file))
		p.must(err)
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], local) && f[3] == state {
				return true
			}
		}
	}
	return false
}

// TestPortForwardClientLeaves: a connection into the pod ends with the client, also when the program in the pod does not care that its own
// client has gone.
func TestPortForwardClientLeaves(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(d.tool("listen", "127.0.0.1:7400", "sleep", "4403"))
	p.waitListening(7400)
	before := len(d.ledger()[ledger.Fds])
	for carrier := range carriers {
		line, leave := p.forward(carrier)
		data, _ := dialPort(t, line, 1, 7400)
		if _, err := data.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the program", func() error {
			for _, one := range d.processesOf(c.id) {
				if strings.Contains(strings.Join(one.Args, " "), "sleep 4403") {
					return nil
				}
			}
			return unless(false, "it has not begun")
		})
		eventually(t, "the test's own connection", func() error { return unless(p.connected(7400), "it is not established") })
		leave()
		// Half closed is not enough: the program in the pod never closes its half.
		eventually(t, "the connection to end", func() error {
			now := len(d.ledger()[ledger.Fds])
			return unless(now <= before, "%d descriptors, %d before", now, before)
		})
	}
}

// TestPortForwardForgetsConnections: of a connection that the pod has ended nothing stays with the daemon, though its client keeps its half and
// the line.
func TestPortForwardForgetsConnections(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	p.run(d.tool("listen", "127.0.0.1:7401", "echo", "answered"))
	p.waitListening(7401)
	for carrier := range carriers {
		line, _ := p.forward(carrier)
		before := d.goroutines()
		for request := range 50 {
			data, _ := dialPort(t, line, request, 7401)
			if got, err := io.ReadAll(data); err != nil || string(got) != "answered\n" {
				t.Fatalf("%s: %q, %v", carrier, got, err)
			}
		}
		d.wantGoroutines(before)
		line.Close()
	}
}
