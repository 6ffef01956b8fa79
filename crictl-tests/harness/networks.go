package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Awkward holds what a careless store would change: order, case, spaces, quotes, other scripts, an
// empty value, a newline.
var Awkward = map[string]string{
	"kubernetes.io/config.seen": "2026-11-23T00:00:00.000000001Z", "EMPTY": "", "unicode": "Größe ☃", "json": `{"b": 1, "a":  "<&>"}`,
	"lines": "one\ntwo\r\n\ttabbed ", "path/with.dots-and_more": `back\slash "quotes" 'single'`,
}

// Hostname is the name of this host.
func Hostname(t testing.TB) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// DeadAddress is one where nobody listens, and nobody can while the test runs.
func DeadAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// FreePort returns a TCP port that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// HostAddress is an address of this host that is not loopback.
func HostAddress(t testing.TB) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this host has no address but loopback")
	return ""
}

// HTTPGet returns the body of a page.
func HTTPGet(url string) (string, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

// WriteNetwork puts a network of the standard plugins into the folder, in one step.
func (d *Daemon) WriteNetwork(name string) {
	d.Helper()
	d.WriteNetworkOf(name, fmt.Sprintf(`[{"subnet": %q}]`, d.Subnet))
}

// WriteNetworkOf is WriteNetwork with ranges of host-local.
func (d *Daemon) WriteNetworkOf(name, ranges string) {
	d.Helper()
	name += "-" + d.Instance()
	conflist := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [
		{"type": "bridge", "bridge": "cbt%s", "isGateway": true, "ipMasq": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}]}`,
		name, d.Instance(), filepath.Join(d.State, "test-leases"), ranges)
	unfinished := filepath.Join(d.Dir, name)
	d.Must(os.WriteFile(unfinished, []byte(conflist), 0o600))
	d.Must(os.Rename(unfinished, filepath.Join(d.ConfDir(), "10-"+name+".conflist")))
}

// WantCondition waits until the status has a condition with this value.
func (d *Daemon) WantCondition(kind string, want bool) {
	d.Helper()
	Eventually(d, fmt.Sprintf("%s=%t", kind, want), func() error {
		r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range r.Status.Conditions {
			if c.Type != kind {
				continue
			}
			if !c.Status && (c.Reason == "" || c.Message == "") {
				return fmt.Errorf("%s is false without reason and message: %v", kind, c)
			}
			return Unless(c.Status == want, "it is %v", c)
		}
		return fmt.Errorf("no such condition in %v", r.Status.Conditions)
	})
}
