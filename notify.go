package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// tellLimit is how long to wait for a service manager that does not read its socket.
const tellLimit = time.Second

// notifier reports the state of the daemon to the service manager (sd_notify(3)). Without a service
// manager it does nothing.
type notifier struct{ socket string }

// newNotifier reads the path of the service manager's socket from the environment, and removes the
// variable, so that child processes do not inherit it.
func newNotifier() notifier {
	n := notifier{os.Getenv("NOTIFY_SOCKET")}
	os.Unsetenv("NOTIFY_SOCKET")
	return n
}

func (n notifier) ready(ctx context.Context)    { n.tell(ctx, "READY=1") }
func (n notifier) stopping(ctx context.Context) { n.tell(ctx, "STOPPING=1") }

// reloading reports that a reload begins. The caller calls ready when the reload has ended.
func (n notifier) reloading(ctx context.Context) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		log.G(ctx).WithError(err).Warn("cannot tell the service manager about the reload")
		return
	}
	n.tell(ctx, fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

func (n notifier) tell(ctx context.Context, state string) {
	if n.socket == "" {
		return
	}
	// A leading @ means an abstract socket, in NOTIFY_SOCKET as well as in package net.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		if err = conn.SetWriteDeadline(time.Now().Add(tellLimit)); err == nil {
			_, err = conn.Write([]byte(state))
		}
		conn.Close()
	}
	if err != nil {
		word, _, _ := strings.Cut(state, "=")
		log.G(ctx).WithError(err).Warnf("cannot send %s to the service manager", word)
	}
}
