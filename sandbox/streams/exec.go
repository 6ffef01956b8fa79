package streams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// Sessions connects clients with processes and ports: exec, attach, port-forward. It changes no
// record.
type Sessions struct {
	layout layout.Layout
	states *table.States
	table  *table.Table
	shim   Runtime
	native func(handler string) bool
	dial   func(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) // to the loopback in a netns
}

// Runtime is what sessions need of the runtime.
type Runtime interface {
	Exec(ctx context.Context, e runtimeshim.Exec) (int32, error)
	Attach(ctx, leave context.Context, id string, out, errs *os.File, attached func()) error
	Streams(ctx context.Context, id string) (runtimeshim.Streams, error)
}

// New returns the sessions with what a table holds. native reports whether commands of a handler are
// executed without its runtime where that makes no difference.
func New(
	l layout.Layout, t *table.Table, shim Runtime, native func(handler string) bool,
	dial func(ctx context.Context, netns string, port uint16) (*net.TCPConn, error),
) *Sessions {
	return &Sessions{layout: l, states: t.States, table: t, shim: shim, native: native, dial: dial}
}

// maxExecOutput bounds what one stream of an ExecSync returns, so that both fit into the 16 MiB
// that a kubelet takes in one message. What comes after is read and thrown away: the command must
// not block on its own output.
const maxExecOutput = 8<<20 - 64<<10

// maxOutputs bounds what all ExecSyncs that are under way keep together: many commands that print
// at once must not cost the daemon its life. What goes beyond is thrown away too.
const maxOutputs = 128 << 20

// outputs is how many bytes of maxOutputs are taken.
var outputs atomic.Int64

// takeOutput takes room for n bytes and returns how much there was.
func takeOutput(n int) int {
	over := outputs.Add(int64(n)) - maxOutputs
	if over <= 0 {
		return n
	}
	got := max(0, n-int(min(over, int64(n))))
	outputs.Add(int64(got - n))
	return got
}

// ExecResult is what a command left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// execStartGrace is how much longer than its timeout a command may take whose process does not come
// to run: what a busy machine makes of a start is no failed probe.
const execStartGrace = 10 * time.Second

// ExecSync runs a command in a container and waits for it (CRI ExecSync). A timeout of 0 is none;
// it begins when the command runs, and after it the command is killed and the error is
// context.DeadlineExceeded, by which a kubelet knows a failed probe. A command that cannot be
// started is an exit code of 126 or 127 with the reason on stderr, as a shell has it. Output of a
// child that the command left behind is not waited for.
func (ss *Sessions) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (ExecResult, error) {
	if timeout < 0 {
		return ExecResult{}, fmt.Errorf("timeout %v is negative: %w", timeout, errdefs.ErrInvalidArgument)
	}
	c, err := ss.table.FindContainer(id)
	if err != nil {
		return ExecResult{}, err
	}
	request, err := ss.execRequest(c, cmd, false)
	if err != nil {
		return ExecResult{}, err
	}
	if timeout > 0 {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		over := time.AfterFunc(max(timeout, timeout+execStartGrace), func() {
			cancel(fmt.Errorf("command %q in container %s timed out after %v: %w",
				cmd[0], c.ID, timeout, context.DeadlineExceeded))
		})
		defer over.Stop()
		request.OnStarted = func() { over.Reset(timeout) }
	}
	return ss.execSync(ctx, request)
}

// command is a process to run in a container. Its pipes belong to root in the pod, who may open
// /dev/stdout.
type command struct {
	runtimeshim.Exec
	as spec.Owner
}

// execRequest describes the command as a process like the container's own.
func (ss *Sessions) execRequest(c *table.ContainerEntry, cmd []string, tty bool) (command, error) {
	if len(cmd) == 0 {
		return command{}, fmt.Errorf("cmd is empty: %w", errdefs.ErrInvalidArgument)
	}
	if err := ss.mustRun(c); err != nil {
		return command{}, err
	}
	e, err := ss.execOf(c)
	if err != nil {
		return command{}, fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	process, err := e.Process(cmd, tty)
	if err != nil {
		return command{}, err
	}
	p, ok := ss.states.Get(c.PodID)
	return command{runtimeshim.Exec{ID: c.ID, Process: process, LockFile: ss.layout.LockPath(c.PodID),
		Native: ok && ss.native(p.Handler)},
		ss.table.RootIn(c.PodID)}, nil
}

// execOf returns what commands in the container share. It is read from the spec once, and again
// after the spec was replaced.
func (ss *Sessions) execOf(c *table.ContainerEntry) (*spec.Exec, error) {
	path := ss.layout.SpecPath(c.PodID, c.ID)
	file, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if e := c.Exec.Load(); e != nil && os.SameFile(e.Spec, file) && e.Spec.ModTime().Equal(file.ModTime()) {
		return e.Exec, nil
	}
	encoded, err := os.ReadFile(path) // or what has replaced the file since: then the next exec reads it again
	if err != nil {
		return nil, err
	}
	e, err := spec.NewExec(encoded)
	if err != nil {
		return nil, err
	}
	c.Exec.Store(&table.Exec{Exec: e, Spec: file})
	return e, nil
}

// mustRun returns ErrNotFound or ErrFailedPrecondition unless the container runs.
func (ss *Sessions) mustRun(c *table.ContainerEntry) error {
	r, ok := ss.states.Record(c)
	if !ok || r.State == store.ContainerCreating {
		return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
	}
	if r.State != store.ContainerRunning && r.State != store.ContainerStopping {
		return fmt.Errorf("container %s is %s: %w", c.ID, r.State, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (ss *Sessions) execSync(ctx context.Context, c command) (ExecResult, error) {
	out, err := newCapture(c.as)
	if err != nil {
		return ExecResult{}, err
	}
	defer out.close()
	errs, err := newCapture(c.as)
	if err != nil {
		return ExecResult{}, err
	}
	defer errs.close()
	c.Stdout, c.Stderr = out.w, errs.w
	code, err := ss.shim.Exec(ctx, c.Exec)
	if cause := context.Cause(ctx); cause != nil {
		return ExecResult{}, cause
	}
	if err != nil {
		return notStarted(err)
	}
	return ExecResult{Stdout: out.finish(), Stderr: errs.finish(), ExitCode: code}, nil
}

// notStarted turns a command that is missing or cannot be executed into the exit code that a shell
// gives it; other errors stay.
func notStarted(err error) (ExecResult, error) {
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return ExecResult{ExitCode: 127, Stderr: []byte(err.Error() + "\n")}, nil
	case errors.Is(err, errdefs.ErrPermissionDenied):
		return ExecResult{ExitCode: 126, Stderr: []byte(err.Error() + "\n")}, nil
	}
	return ExecResult{}, err
}

// capture keeps the beginning of one stream of a command.
type capture struct {
	*outputPipe
	buf   bytes.Buffer
	taken atomic.Int64 // of outputs
}

func newCapture(as spec.Owner) (*capture, error) {
	c := &capture{}
	var err error
	c.outputPipe, err = newOutputPipe(as, c.keep)
	return c, err
}

func (c *capture) keep(b []byte) {
	if room := maxExecOutput - c.buf.Len(); room > 0 {
		n := takeOutput(min(len(b), room))
		c.taken.Add(int64(n))
		c.buf.Write(b[:n])
	}
}

// close gives up the pipe, and the room of what was kept.
func (c *capture) close() {
	c.outputPipe.close()
	outputs.Add(-c.taken.Swap(0))
}

// finish returns what the command wrote before it ended.
func (c *capture) finish() []byte {
	c.outputPipe.finish()
	return c.buf.Bytes()
}
