package streams

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cribox/cribox/crictl-tests/harness"
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
func forward(p *harness.Pod, carrier string) (line httpstream.Connection, leave func()) {
	p.Helper()
	r, err := p.Runtime.PortForward(context.Background(), &cri.PortForwardRequest{PodSandboxId: p.ID})
	p.Must(err)
	ctx, cancel := context.WithCancel(context.Background())
	p.Cleanup(cancel)
	address, err := harness.LineFor(ctx, r.Url)
	p.Must(err)
	u, err := url.Parse(address)
	p.Must(err)
	dialer, err := carriers[carrier](u)
	p.Must(err)
	conn, _, err := dialer.Dial("portforward.k8s.io")
	p.Must(err)
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
	d := harness.NewDaemon(t)
	for name, options := range map[string][]harness.PodOption{"pod network": nil, "host network": {harness.OnHostNetwork}} {
		t.Run(name, func(t *testing.T) {
			p := d.RunPod(options...)
			port := 21000 + int(harness.Names.Add(1)) // on the host's network it must be free
			p.Run(d.Tool("listen", fmt.Sprintf("127.0.0.1:%d", port), "cat"))
			p.Run(d.Tool("listen", fmt.Sprintf("127.0.0.1:%d", port+1000), "wc", "-c"))
			p.Run(d.Tool("listen", fmt.Sprintf("[::1]:%d", port+2000), "cat"))
			for _, listens := range []int{port, port + 1000, port + 2000} {
				p.WaitListening(listens)
			}
			for carrier := range carriers {
				line, _ := forward(p, carrier)
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

// connected says whether a connection to the port is established.
func connected(p *harness.Pod, port int) bool { return p.HasSocket(port, "01") }

// TestPortForwardClientLeaves: a connection into the pod ends with the client, also when the program in the pod does not care that its own
// client has gone.
func TestPortForwardClientLeaves(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("listen", "127.0.0.1:7400", "sleep", "4403"))
	p.WaitListening(7400)
	before := len(d.Ledger()[ledger.Fds])
	for carrier := range carriers {
		line, leave := forward(p, carrier)
		data, _ := dialPort(t, line, 1, 7400)
		if _, err := data.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the program", func() error {
			for _, one := range d.ProcessesOf(c.ID) {
				if strings.Contains(strings.Join(one.Args, " "), "sleep 4403") {
					return nil
				}
			}
			return harness.Unless(false, "it has not begun")
		})
		harness.Eventually(t, "the test's own connection", func() error { return harness.Unless(connected(p, 7400), "it is not established") })
		leave()
		// Half closed is not enough: the program in the pod never closes its half.
		harness.Eventually(t, "the connection to end", func() error {
			now := len(d.Ledger()[ledger.Fds])
			return harness.Unless(now <= before, "%d descriptors, %d before", now, before)
		})
	}
}

// TestPortForwardForgetsConnections: of a connection that the pod has ended nothing stays with the daemon, though its client keeps its half and
// the line.
func TestPortForwardForgetsConnections(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	p.Run(d.Tool("listen", "127.0.0.1:7401", "echo", "answered"))
	p.WaitListening(7401)
	for carrier := range carriers {
		line, _ := forward(p, carrier)
		before := d.Goroutines()
		for request := range 50 {
			data, _ := dialPort(t, line, request, 7401)
			if got, err := io.ReadAll(data); err != nil || string(got) != "answered\n" {
				t.Fatalf("%s: %q, %v", carrier, got, err)
			}
		}
		d.WantGoroutines(before)
		line.Close()
	}
}
