package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDial connects to both loopbacks of a namespace, and fails when nobody listens.
func TestDial(t *testing.T) {
	netns := testNetNS(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		var l net.Listener
		within(t, netns, func() (err error) {
			l, err = net.Listen("tcp", net.JoinHostPort(host, "0"))
			return err
		})
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		conn, err := Dial(t.Context(), netns, port)
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		peer.Close()
		got := make([]byte, 5)
		if n, err := conn.Read(got); err != nil || string(got[:n]) != "hello" {
			t.Errorf("%s: read %q, %v", host, got[:n], err)
		}
		conn.Close()
		l.Close()
		if _, err := Dial(t.Context(), netns, port); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: nobody listens: %v", host, err)
		}
	}
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no namespace: %v", err)
	}
}

// TestDialHoldsNoThread: a program of the pod listens but does not accept. Waiting clients must not
// cost the daemon a thread each, because Go ends a process that has 10,000 threads.
func TestDialHoldsNoThread(t *testing.T) {
	const clients = 100
	netns := testNetNS(t)
	port := listenAndAcceptNothing(t, netns)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := threads(t)
	failed := make(chan error, clients)
	for range clients {
		go func() {
			conn, err := Dial(ctx, netns, port)
			if err == nil { // the accept queue holds one or two
				defer conn.Close()
				<-ctx.Done()
				err = ctx.Err()
			}
			failed <- err
		}()
	}
	await(t, fmt.Sprintf("%d clients wait", clients-10), func() bool { return waiting(t, netns) >= clients-10 })
	if now := threads(t); now > before+clients/2 {
		t.Errorf("%d threads before, and %d with %d clients that wait", before, now, clients)
	}
	cancel()
	for range clients {
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("after the end of the context: %v", err)
		}
	}
}

func testNetNS(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "netns")
	path := filepath.Join(dir, "a")
	if err := New(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(path); _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return path
}

// listenAndAcceptNothing returns a port of 127.0.0.1 with a minimal accept queue.
func listenAndAcceptNothing(t *testing.T, netns string) (port uint16) {
	t.Helper()
	within(t, netns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		if err := unix.Listen(fd, 0); err != nil {
			return err
		}
		name, err := unix.Getsockname(fd)
		if err == nil {
			port = uint16(name.(*unix.SockaddrInet4).Port)
		}
		return err
	})
	return port
}

// waiting counts the connections in the namespace whose SYN has no reply (SYN_SENT).
func waiting(t *testing.T, netns string) int {
	t.Helper()
	var table []byte
	within(t, netns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	})
	return len(regexp.MustCompile(`(?m)^ *\d+: \S+ \S+ 02 `).FindAll(table, -1))
}

func threads(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nThreads:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// await polls until the condition is true, or fails after a minute.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to it that %s", what)
		}
	}
}

// within runs f on a thread inside the namespace.
func within(t *testing.T, path string, f func() error) {
	t.Helper()
	if err := Run(path, f); err != nil {
		t.Fatalf("in %s: %v", path, err)
	}
}
