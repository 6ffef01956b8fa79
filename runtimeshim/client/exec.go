package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Exec runs an additional process in a running task and returns its exit code when it has ended.
// When ctx ends, it kills the process group and returns ctx's error. ErrNotFound and
// ErrPermissionDenied: the program is missing or cannot be executed; the message is the runtime's.
// ErrFailedPrecondition: there is no such task, or it is not running. ErrUnavailable: the shim
// died; the process is killed too.
func (k *Client) Exec(ctx context.Context, e runtimeshim.Exec) (int32, error) {
	if err := statedir.CheckID(e.ID); err != nil {
		return 0, err
	}
	var p struct {
		Terminal bool `json:"terminal"`
	}
	if err := json.Unmarshal(e.Process, &p); err != nil {
		return 0, fmt.Errorf("execute in task %s: read process: %v: %w", e.ID, err, errdefs.ErrInvalidArgument)
	}
	if p.Terminal != (e.OnTerminal != nil) {
		return 0, fmt.Errorf("execute in task %s: terminal and OnTerminal must come together: %w",
			e.ID, errdefs.ErrInvalidArgument)
	}
	if e.Runtime == "" {
		var rec statedir.Record
		if err := statedir.ReadJSON(k.state.Task(e.ID).Record(), &rec); errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("execute in task %s: no such task: %w", e.ID, errdefs.ErrFailedPrecondition)
		} else if err != nil {
			return 0, fmt.Errorf("execute in task %s: %w", e.ID, err)
		}
		e.Runtime = rec.Runtime
	}
	body := wire.Exec{ID: e.ID, Runtime: e.Runtime, Process: e.Process, LockFile: e.LockFile, Terminal: p.Terminal,
		Session: e.Session, Native: e.Native}
	var files []*os.File
	for i, f := range []*os.File{e.Stdin, e.Stdout, e.Stderr} {
		if body.Have[i] = f != nil; f != nil {
			files = append(files, f)
		}
	}
	var done wire.ExecDone
	k.c.Step.Pass("client.exec")
	err := k.whileNobody(ctx, k.shim, "exec", func() error {
		// When ctx ends, the shim kills the command: whoever looks afterwards must not find it.
		_, err := wire.StreamToEnd(ctx, wire.KilledWait+time.Second, k.shim.format(), k.shim.sock, "exec", body, files, &done,
			func(_ json.RawMessage, got []*os.File) error {
				if e.OnStarted != nil {
					e.OnStarted()
				}
				if e.OnTerminal != nil && len(got) == 1 {
					e.OnTerminal(got[0])
					return nil
				}
				unixfd.CloseAll(got)
				return nil
			})
		return err
	})
	return done.Code, err
}

// Streams returns the daemon's ends of a running task's terminal and stdin. ErrNotFound when there
// is no such task, ErrFailedPrecondition when it is not running.
func (k *Client) Streams(ctx context.Context, id string) (runtimeshim.Streams, error) {
	if err := statedir.CheckID(id); err != nil {
		return runtimeshim.Streams{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	var kinds []string
	var files []*os.File
	err := k.whileNobody(ctx, k.shim, "fds", func() (err error) {
		files, err = k.shim.call(ctx, "fds", wire.Task{ID: id}, &kinds)
		return err
	})
	if err != nil {
		return runtimeshim.Streams{}, err
	}
	var s runtimeshim.Streams
	for i, f := range files {
		switch {
		case i < len(kinds) && kinds[i] == "terminal" && s.Terminal == nil:
			s.Terminal = f
		case i < len(kinds) && kinds[i] == "stdin" && s.Stdin == nil:
			// Non-blocking, because a write to a task that does not read would otherwise block even
			// Close.
			if s.Stdin, err = unixfd.Polled(f); err != nil {
				s.Close()
				unixfd.CloseAll(files[i:])
				return runtimeshim.Streams{}, err
			}
		default:
			f.Close()
		}
	}
	return s, nil
}

// Attach copies what a running task prints from now on to out and errs, which are write ends of
// pipes; nil = not wanted. The caller must close them. attached is called once copying has begun.
// Attach returns nil when the task has exited and all output is written, ErrUnavailable when the
// logger died (the caller may attach again), ErrFailedPrecondition when the task had already
// exited, and ErrAborted when a reader was cut off because it read nothing for ten seconds.
//
// When leave, unless it is nil, ends, Attach writes what the task has printed until then and
// returns nil.
func (k *Client) Attach(ctx, leave context.Context, id string, out, errs *os.File, attached func()) error {
	if err := statedir.CheckID(id); err != nil {
		return err
	}
	body := wire.Attach{ID: id, Have: [2]bool{out != nil, errs != nil}}
	var files []*os.File
	for _, f := range []*os.File{out, errs} {
		if f != nil {
			files = append(files, f)
		}
	}
	return k.whileNobody(ctx, k.logger, "attach", func() error {
		conn, err := wire.Dial(ctx, k.logger.sock)
		if err != nil {
			return fmt.Errorf("attach to task %s: %w", id, err)
		}
		defer conn.Close()
		_, err = wire.Converse(ctx, conn, k.logger.format(), "attach", body, files, nil,
			func(_ json.RawMessage, got []*os.File) error {
				unixfd.CloseAll(got)
				attached()
				if leave != nil {
					context.AfterFunc(leave, func() { hangUp(conn) })
				}
				return nil
			})
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if errors.Is(err, wire.ErrBroken) {
			err = fmt.Errorf("attach to task %s: %v: %w", id, err, errdefs.ErrUnavailable)
		}
		return err
	})
}

// leaveWait is how long the logger may take to write the remaining output after a client leaves.
const leaveWait = 30 * time.Second

// hangUp tells the peer that no further request follows. Its reply can still be read, until
// leaveWait.
func hangUp(conn *net.UnixConn) {
	_ = conn.CloseWrite()
	conn.SetReadDeadline(time.Now().Add(leaveWait))
}
