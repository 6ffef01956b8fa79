package streaming

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// TestForwardFailsAtOnce: a client learns why its connection failed, however early that was.
func TestForwardFailsAtOnce(t *testing.T) {
	refused := errors.New("connection refused")
	line := dialForward(t, func(context.Context, int32, io.ReadWriteCloser) error { return refused })
	for request := range 1000 {
		complaint := openStreams(t, line, request)
		text, err := io.ReadAll(complaint)
		if err != nil || !strings.Contains(string(text), refused.Error()) {
			t.Fatalf("connection %d: %q, %v", request, text, err)
		}
	}
}

// dialForward returns the SPDY connection of one client of a Server; both end with the test.
func dialForward(t *testing.T, forward Forward) httpstream.Connection {
	t.Helper()
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	s := New(l)
	go s.Serve(l)
	t.Cleanup(s.Close)
	url, err := s.PortForward([]int32{80}, forward)
	if err != nil {
		t.Fatal(err)
	}
	carrier, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	response, err := carrier.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	line, err := carrier.NewConnection(response)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { line.Close() })
	return line
}

// openStreams opens the two streams of a connection to port 80, and returns the one for errors.
func openStreams(t *testing.T, line httpstream.Connection, request int) httpstream.Stream {
	t.Helper()
	headers := http.Header{}
	headers.Set(portforward.PortHeader, "80")
	headers.Set(portforward.PortForwardRequestIDHeader, strconv.Itoa(request))
	open := func(kind string) httpstream.Stream {
		headers.Set(portforward.StreamType, kind)
		stream, err := line.CreateStream(headers.Clone())
		if err != nil {
			t.Fatalf("connection %d, %s: %v", request, kind, err)
		}
		return stream
	}
	complaint := open(portforward.StreamTypeError)
	open(portforward.StreamTypeData)
	return complaint
}
