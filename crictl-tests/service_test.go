package crictltests

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// serviceManager is the socket on which systemd listens to its services.
type serviceManager struct {
	testing.TB
	conn *net.UnixConn
}

// serviceManager makes the socket and has the daemon told of it when it is started.
func (d *daemon) serviceManager() *serviceManager {
	d.Helper()
	socket := filepath.Join(d.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	d.must(err)
	d.Cleanup(func() { _ = conn.Close() })
	d.env = append(d.env, "NOTIFY_SOCKET="+socket)
	return &serviceManager{d, conn}
}

func (m *serviceManager) wantWord(want string) {
	m.Helper()
	buf := make([]byte, 4096)
	if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		m.Fatal(err)
	}
	n, err := m.conn.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), want) {
		m.Fatalf("the service manager was told %q (%v), want %s", buf[:n], err, want)
	}
}

// TestServiceManagerDoesNotRead: the daemon serves and ends although nobody takes what it says.
func TestServiceManagerDoesNotRead(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t)
	full := d.serviceManager().conn.LocalAddr().String()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	d.must(err)
	defer unix.Close(fd)
	d.must(unix.Connect(fd, &unix.SockaddrUnix{Name: full}))
	for err == nil {
		_, err = unix.Write(fd, []byte("full"))
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	d.launch()
	d.waitReady()
	d.empty = d.ledger()
	d.stop()
	if said := hostFile(t, d.logFile()); !strings.Contains(said, "the service manager is not told READY") {
		t.Errorf("the log does not say that nobody listens:\n%s", said)
	}
	d.env = d.env[:len(d.env)-1]
	d.start()
}

// TestServiceManager: once it is told that the daemon is ready, the first call is answered, with all pods from before.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t)
	manager := d.serviceManager()
	d.launch()
	manager.wantWord("READY=1")
	d.waitReady()
	d.empty = d.ledger()
	p := d.runPod()

	d.kill()
	d.launch()
	manager.wantWord("READY=1")
	d.conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := d.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil || len(r.Items) != 1 || r.Items[0].Id != p.id || r.Items[0].State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("told to be ready, the daemon lists %v, %v", r, err)
	}
	if got := hostFile(t, "/proc/"+strconv.Itoa(d.role("shim"))+"/environ"); strings.Contains(got, "NOTIFY_SOCKET") {
		t.Error("the shim inherited the service manager's socket")
	}

	d.hangup("the configuration was read again")
	manager.wantWord("RELOADING=1\nMONOTONIC_USEC=")
	manager.wantWord("READY=1")
	d.stop()
	manager.wantWord("STOPPING=1")
	d.env = d.env[:len(d.env)-1]
	d.start()
}
