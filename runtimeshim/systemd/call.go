package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/godbus/dbus/v5"
)

// Where systemd listens: the system's bus, which is the public way, and its own socket, which has no bus
// between. Tests change them.
var (
	busAddress     = "unix:path=/run/dbus/system_bus_socket"
	privateAddress = "unix:path=/run/systemd/private"
)

const (
	busName = "org.freedesktop.systemd1"
	manager = busName + ".Manager"
	path    = dbus.ObjectPath("/org/freedesktop/systemd1")
)

// callJob calls a method of the manager that returns a job of a unit, and waits for the job's end.
func callJob(ctx context.Context, unit, method string, args ...any) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // closes the connection
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ended, err := conn.jobsOf(ctx, unit)
	if err != nil {
		return err
	}
	var job dbus.ObjectPath
	if err := conn.Object(busName, path).CallWithContext(ctx, manager+"."+method, 0, args...).Store(&job); err != nil {
		return errors.Join(err, ctx.Err())
	}
	return await(ctx, ended, job)
}

// connection is one to systemd.
type connection struct {
	*dbus.Conn
	private bool // without a bus between
}

// connect returns a connection that ends with ctx.
func connect(ctx context.Context) (*connection, error) {
	conn, err := dial(ctx, busAddress)
	if err == nil {
		if err = conn.Hello(); err == nil {
			return &connection{Conn: conn}, nil
		}
		conn.Close()
	}
	conn, privateErr := dial(ctx, privateAddress)
	if privateErr != nil {
		return nil, errors.Join(err, privateErr, ctx.Err())
	}
	return &connection{Conn: conn, private: true}, nil
}

func dial(ctx context.Context, address string) (*dbus.Conn, error) {
	conn, err := dbus.Dial(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return conn, nil
}

// jobsOf asks for the signal that a job of the unit has ended. systemd sends it to whoever has asked for
// the job; over its own socket one need not subscribe.
func (c *connection) jobsOf(ctx context.Context, unit string) (<-chan *dbus.Signal, error) {
	ended := make(chan *dbus.Signal, 16)
	c.Signal(ended)
	if c.private {
		return ended, nil
	}
	err := c.AddMatchSignalContext(ctx, dbus.WithMatchInterface(manager), dbus.WithMatchMember("JobRemoved"),
		dbus.WithMatchArg(2, unit))
	return ended, err
}

// await returns when a job has ended; nil if it has done what was asked.
func await(ctx context.Context, ended <-chan *dbus.Signal, job dbus.ObjectPath) error {
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for its job: %w", context.Cause(ctx))
		case s, open := <-ended:
			if !open {
				return errors.Join(errors.New("the connection to systemd has ended"), ctx.Err())
			}
			var (
				id           uint32
				which        dbus.ObjectPath
				unit, result string
			)
			if s.Name != manager+".JobRemoved" || dbus.Store(s.Body, &id, &which, &unit, &result) != nil || which != job {
				continue
			}
			if result != "done" {
				return fmt.Errorf("its job ended with %q", result)
			}
			return nil
		}
	}
}
