package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// loopbacks are the addresses at which a pod's port is dialed, in this order.
var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// Dial connects to a TCP port of the loopback inside a pinned network namespace, first by IPv4,
// then by IPv6; "" is the namespace of this process. Only the socket is created on a thread in the
// namespace. The wait for the reply does not block a thread: otherwise a program that listens but
// does not accept would hold one thread per client.
func Dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) {
	var all error
	for _, host := range loopbacks {
		to := netip.AddrPortFrom(host, port)
		s, err := socketIn(netns, to)
		if err == nil {
			var conn *net.TCPConn
			if conn, err = connect(ctx, s, to); err == nil {
				return conn, nil
			}
		}
		all = errors.Join(all, fmt.Errorf("dial tcp %s: %w", to, err))
	}
	return nil, all
}

// socketIn returns a TCP socket for the address, created in the namespace. It stays in that
// namespace, whichever thread uses it. socketIn does not block.
func socketIn(netns string, to netip.AddrPort) (s *os.File, err error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	open := func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		s = os.NewFile(uintptr(fd), to.String())
		return nil
	}
	if netns == "" {
		err = open()
	} else {
		err = Run(netns, open)
	}
	return s, err
}

// connect waits for the connection until ctx ends, and closes s.
func connect(ctx context.Context, s *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	defer s.Close()
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })()
	var refused error
	begun := false
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			refused = unix.Connect(int(fd), sockaddr(to))
			if errors.Is(refused, unix.EINPROGRESS) {
				refused = nil
				return false
			}
			return true
		}
		var connected bool
		connected, refused = outcome(int(fd))
		return connected || refused != nil
	})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case refused != nil:
		return nil, os.NewSyscallError("connect", refused)
	}
	conn, err := net.FileConn(s)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// outcome returns the state of a connection attempt: connected, an error, or neither while it is in
// progress.
func outcome(fd int) (connected bool, err error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return false, err
	}
	if code != 0 {
		return false, unix.Errno(code)
	}
	_, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return false, nil
	}
	return err == nil, err
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}

// Run runs f on a thread in the pinned namespace. The thread ends with f and is not reused.
func Run(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}
