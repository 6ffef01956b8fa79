package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dial connects to a TCP port of the loopback inside a pinned network namespace, by IPv4 and then by IPv6; "" is the
// namespace of this process.
func Dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) {
	var conn *net.TCPConn
	connect := func() error {
		var all error
		for _, host := range []string{"127.0.0.1", "::1"} {
			// An address needs no resolver: the socket is made on the thread that asks.
			c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c.(*net.TCPConn)
				return nil
			}
			all = errors.Join(all, err)
		}
		return all
	}
	var err error
	if netns == "" {
		err = connect()
	} else {
		err = inNetNS(netns, connect)
	}
	return conn, err
}

// inNetNS runs f on a thread in the namespace. The thread ends with f: nobody else ever runs on it.
func inNetNS(path string, f func() error) error {
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
