// Package program runs a program of the node for one question. It bounds the time and the answer,
// and knows nothing of what is asked.
package program

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const nobody = 65534

// Question is one run of a program.
type Question struct {
	Path   string // absolute
	Args   []string
	Input  []byte
	Time   time.Duration // how long it may take
	Most   int           // bytes of the answer
	Nobody bool          // run it without privileges, if this process has some
}

// Ask runs the program and returns what it printed, also if it failed. Errors name the program and
// contain nothing that it printed.
func Ask(ctx context.Context, q Question) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, q.Time, fmt.Errorf("no answer within %s", q.Time))
	defer cancel()
	out := &capped{left: q.Most}
	cmd := exec.CommandContext(ctx, q.Path, q.Args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout = "/", bytes.NewReader(q.Input), out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if q.Nobody && os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		cmd.Env = []string{}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a child that has left the group may hold the pipe open
	err := cmd.Run()
	switch {
	case err == nil:
	case context.Cause(ctx) != nil:
		err = context.Cause(ctx)
	case out.full:
		err = fmt.Errorf("its answer has more than %d bytes", q.Most)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", filepath.Base(q.Path), err)
	}
	return out.buf.Bytes(), err
}

// capped is a buffer that refuses more than left bytes. The buffer is not embedded: io.Copy would
// fill it through its ReadFrom, without a limit.
type capped struct {
	buf  bytes.Buffer
	left int
	full bool // it has refused some
}

func (c *capped) Write(b []byte) (int, error) {
	if len(b) > c.left {
		c.full = true
		return 0, io.ErrShortWrite
	}
	c.left -= len(b)
	return c.buf.Write(b)
}
