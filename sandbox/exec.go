package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

// maxExecOutput bounds what one stream of an ExecSync returns, so that both fit into the 16 MiB that a kubelet takes in one message. What
// comes after is read and thrown away: the command must not block on its own output.
const maxExecOutput = 8<<20 - 64<<10

// ExecResult is what a command left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// ExecSync runs a command in a container and waits for it (CRI ExecSync). A timeout of 0 is none. After the timeout the command is killed
// and the error is context.DeadlineExceeded, by which a kubelet knows a failed probe. A command that cannot be started is an exit code of
// 126 or 127 with the reason on stderr, as a shell has it. Output of a child that the command left behind is not waited for.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (ExecResult, error) {
	if len(cmd) == 0 {
		return ExecResult{}, fmt.Errorf("cmd is empty: %w", errdefs.ErrInvalidArgument)
	}
	if timeout < 0 {
		return ExecResult{}, fmt.Errorf("timeout %v is negative: %w", timeout, errdefs.ErrInvalidArgument)
	}
	c, err := m.findContainer(id)
	if err != nil {
		return ExecResult{}, err
	}
	request, err := m.execRequest(c, cmd)
	if err != nil {
		return ExecResult{}, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("command %q in container %s timed out after %v: %w", cmd[0], c.id, timeout, context.DeadlineExceeded))
		defer cancel()
	}
	return m.execSync(ctx, request)
}

// execRequest describes the command as a process like the container's own.
func (m *Manager) execRequest(c *container, cmd []string) (runtimeshim.Exec, error) {
	r, ok := m.record(c)
	if !ok {
		return runtimeshim.Exec{}, fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
	}
	if r.State != store.ContainerRunning && r.State != store.ContainerStopping {
		return runtimeshim.Exec{}, fmt.Errorf("container %s is %s: %w", c.id, r.State, errdefs.ErrFailedPrecondition)
	}
	p, ok := m.store.Get(c.podID)
	if !ok {
		return runtimeshim.Exec{}, fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
	}
	h, err := m.handler(p.Handler)
	if err != nil {
		return runtimeshim.Exec{}, err
	}
	b, err := m.specFile(c)
	if err != nil {
		return runtimeshim.Exec{}, fmt.Errorf("spec of container %s: %w", c.id, err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return runtimeshim.Exec{}, fmt.Errorf("spec of container %s: %w", c.id, err)
	}
	command, err := spec.ExecProcess(&s, cmd, false)
	if err != nil {
		return runtimeshim.Exec{}, err
	}
	process, err := json.Marshal(command)
	if err != nil {
		return runtimeshim.Exec{}, err
	}
	return runtimeshim.Exec{ID: c.id, Runtime: h.Path, Process: process, LockFile: m.lockPath(c.podID)}, nil
}

func (m *Manager) execSync(ctx context.Context, request runtimeshim.Exec) (ExecResult, error) {
	out, err := newCapture()
	if err != nil {
		return ExecResult{}, err
	}
	defer out.close()
	errs, err := newCapture()
	if err != nil {
		return ExecResult{}, err
	}
	defer errs.close()
	request.Stdout, request.Stderr = out.w, errs.w
	code, err := m.shim.Exec(ctx, request)
	if cause := context.Cause(ctx); cause != nil {
		return ExecResult{}, cause
	}
	if err != nil {
		return notStarted(err)
	}
	return ExecResult{Stdout: out.finish(), Stderr: errs.finish(), ExitCode: code}, nil
}

// notStarted turns a command that is missing or cannot be executed into the exit code that a shell gives it; other errors stay.
func notStarted(err error) (ExecResult, error) {
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return ExecResult{ExitCode: 127, Stderr: []byte(err.Error() + "\n")}, nil
	case errors.Is(err, errdefs.ErrPermissionDenied):
		return ExecResult{ExitCode: 126, Stderr: []byte(err.Error() + "\n")}, nil
	}
	return ExecResult{}, err
}

// capture reads one stream of a command from a pipe.
type capture struct {
	r, w *os.File
	buf  bytes.Buffer
	done chan struct{}
}

// newCapture makes the pipe and begins to read. The end that the command gets blocks, as programs expect of their output.
func newCapture() (*capture, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe for a command: %w", err)
	}
	if err := unix.SetNonblock(ends[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("pipe for a command: %w", err), unix.Close(ends[0]), unix.Close(ends[1]))
	}
	c := &capture{r: os.NewFile(uintptr(ends[0]), "command output"), w: os.NewFile(uintptr(ends[1]), "command output"), done: make(chan struct{})}
	go c.read()
	return c, nil
}

func (c *capture) read() {
	defer close(c.done)
	chunk := make([]byte, 32<<10)
	for {
		n, err := c.r.Read(chunk)
		c.keep(chunk[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.drain(chunk)
		}
		if err != nil {
			return
		}
	}
}

func (c *capture) keep(b []byte) {
	if room := maxExecOutput - c.buf.Len(); room > 0 {
		c.buf.Write(b[:min(len(b), room)])
	}
}

// drain takes what is in the pipe at this moment, and neither waits for more nor follows a child that goes on writing.
func (c *capture) drain(chunk []byte) {
	c.r.SetReadDeadline(time.Time{})
	raw, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		for left > 0 && err == nil {
			var n int
			n, err = unix.Read(int(fd), chunk[:min(left, len(chunk))])
			c.keep(chunk[:max(n, 0)])
			left -= max(n, 0)
			if n == 0 {
				break
			}
		}
		return true
	})
	if err != nil {
		return // closed; what was read is kept
	}
}

// finish returns what was written before the command ended. Everything it wrote is in the pipe by then; a child that holds the pipe open is
// not waited for.
func (c *capture) finish() []byte {
	c.w.Close()
	c.r.SetReadDeadline(time.Now())
	<-c.done
	return c.buf.Bytes()
}

func (c *capture) close() {
	c.w.Close()
	c.r.Close()
	<-c.done
}
