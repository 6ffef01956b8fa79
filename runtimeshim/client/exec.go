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

// Exec runs one more process in a running task and returns its exit code when
// it has ended. When ctx ends, its process group is killed and ctx's error
// returned. ErrNotFound and ErrPermissionDenied: the program is missing or
// cannot be executed, the sentence is the runtime's; ErrFailedPrecondition:
// there is no such task, or it does not run; ErrUnavailable: the shim died, the
// process does too.
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
		return 0, fmt.Errorf("execute in task %s: terminal and OnTerminal must come together: %w", e.ID, errdefs.ErrInvalidArgument)
	}
	if e.Runtime == "" {
		var rec statedir.Record
		if err := statedir.ReadJSON(k.state.Task(e.ID).Record(), &rec); errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("execute in task %s, which is not there: %w", e.ID, errdefs.ErrFailedPrecondition)
		} else if err != nil {
			return 0, fmt.Errorf("execute in task %s: %w", e.ID, err)
		}
		e.Runtime = rec.Runtime
	}
	body := wire.Exec{ID: e.ID, Runtime: e.Runtime, Process: e.Process, LockFile: e.LockFile, Terminal: p.Terminal, Session: e.Session}
	var files []*os.File
	for i, f := range []*os.File{e.Stdin, e.Stdout, e.Stderr} {
		if body.Have[i] = f != nil; f != nil {
			files = append(files, f)
		}
	}
	var done wire.ExecDone
	k.c.Step("client.exec")
	err := k.whileNobody(ctx, k.shim, "exec", func() error {
		_, err := k.shim.stream(ctx, "exec", body, files, &done, func(_ json.RawMessage, got []*os.File) error {
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

// Streams returns the daemon's ends of a running task's terminal and stdin.
// ErrNotFound, ErrFailedPrecondition when it does not run.
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
			// A task that does not read must not hold the writer, who could not even be closed.
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

// Attach gives a copy of what a running task prints from now on to out and
// errs, writing ends of pipes which stay the caller's to close; nil = not
// wanted. attached is called when that is so. It returns nil when the task has
// ended and both have everything, ErrUnavailable when the logger died (attach
// again), ErrFailedPrecondition when the task had ended before,
// ErrAborted when a reader was cut off because it took nothing for ten seconds.
//
// When leave ends, unless it is nil, both get what the task has printed until
// then, and Attach returns nil.
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
		_, err = wire.Converse(ctx, conn, k.logger.format(), "attach", body, files, nil, func(_ json.RawMessage, got []*os.File) error {
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

// leaveWait is how long the logger may take to hand over what was printed before an attached client
// left.
const leaveWait = 30 * time.Second

// hangUp tells the peer that nothing more is asked of it; its answer is still read, for a while.
func hangUp(conn *net.UnixConn) {
	_ = conn.CloseWrite()
	conn.SetReadDeadline(time.Now().Add(leaveWait))
}
