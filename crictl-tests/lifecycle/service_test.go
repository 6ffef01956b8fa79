package lifecycle

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

	"github.com/cribox/cribox/crictl-tests/harness"
)

// serviceManager is the socket on which systemd listens to its services.
type serviceManager struct {
	testing.TB
	conn *net.UnixConn
}

// startServiceManager makes the socket and has the daemon told of it when it is started.
func startServiceManager(d *harness.Daemon) *serviceManager {
	d.Helper()
	socket := filepath.Join(d.Dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	d.Must(err)
	d.Cleanup(func() { _ = conn.Close() })
	d.Env = append(d.Env, "NOTIFY_SOCKET="+socket)
	return &serviceManager{d, conn}
}

func (m *serviceManager) wantWord(want string) {
	m.Helper()
	buf := make([]byte, 4096)
	if err := m.conn.SetReadDeadline(time.Now().Add(harness.Patience)); err != nil {
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
	d := harness.PrepareDaemon(t)
	full := startServiceManager(d).conn.LocalAddr().String()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	d.Must(err)
	defer unix.Close(fd)
	d.Must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)) // so that it is the queue that becomes full
	d.Must(unix.Connect(fd, &unix.SockaddrUnix{Name: full}))
	for err == nil {
		_, err = unix.Write(fd, []byte("full"))
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	d.Launch()
	d.WaitReady()
	d.Empty = d.Ledger()
	d.Stop()
	if said := harness.HostFile(t, d.LogFile()); !strings.Contains(said, "cannot send READY to the service manager") {
		t.Errorf("the log does not say that nobody listens:\n%s", said)
	}
	d.Env = d.Env[:len(d.Env)-1]
	d.Start()
}

// TestServiceManager: once it is told that the daemon is ready, the first call is answered, with all pods from before.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t)
	manager := startServiceManager(d)
	d.Launch()
	manager.wantWord("READY=1")
	d.WaitReady()
	d.Empty = d.Ledger()
	p := d.RunPod()

	d.Kill()
	d.Launch()
	manager.wantWord("READY=1")
	d.Conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	r, err := d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil || len(r.Items) != 1 || r.Items[0].Id != p.ID || r.Items[0].State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("told to be ready, the daemon lists %v, %v", r, err)
	}
	if got := harness.HostFile(t, "/proc/"+strconv.Itoa(d.Role("shim"))+"/environ"); strings.Contains(got, "NOTIFY_SOCKET") {
		t.Error("the shim inherited the service manager's socket")
	}

	d.Hangup("configuration reloaded")
	manager.wantWord("RELOADING=1\nMONOTONIC_USEC=")
	manager.wantWord("READY=1")
	d.Stop()
	manager.wantWord("STOPPING=1")
	d.Env = d.Env[:len(d.Env)-1]
	d.Start()
}
