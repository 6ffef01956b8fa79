package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Command is one execution of an OCI runtime.
type Command struct {
	Runtime string
	// Log is the file for the command's JSON log. It is removed before the start; the last error in
	// it becomes the error returned.
	Log     string
	Systemd bool        // systemd creates the task's cgroup
	Args    []string    // after the global options
	Stdio   [3]*os.File // nil = /dev/null
	Extra   []*os.File  // descriptors 3 and up
	// Said returns what the command has printed, used for the error if there is none in the log;
	// nil = unknown
	Said  func() string
	Wait  time.Duration
	Grace time.Duration // how long the command may still run after ctx has ended
	// Begun, of a program, is called when it runs, with a context that ends after Wait. Its error ends the
	// program.
	Begun func(ctx context.Context, proc procfd.Child) error
}

// Driver executes the commands of OCI runtimes as children of this process.
type Driver struct {
	state   statedir.Root
	Reaper  *procfd.Reaper
	ownOOM  bool // our oom_score_adj is not 0, so that of children must be reset
	counter atomic.Uint64
}

// NewDriver returns a driver for the tasks of a state folder. ownOOM: this process has a different
// oom_score_adj than its children must have.
func NewDriver(state statedir.Root, ownOOM bool) *Driver {
	return &Driver{state: state, Reaper: procfd.NewReaper(), ownOOM: ownOOM}
}

// Run executes the command and returns nil if its exit status is 0. It kills the command and its
// children when the deadline is exceeded, or when the grace period after the end of ctx is over.
func (d *Driver) Run(ctx context.Context, c Command) error {
	os.Remove(c.Log)
	proc, err := d.spawn(c.argv(d.state.RuncRoot()), append(c.Stdio[:], c.Extra...))
	if err != nil {
		return startError(c.Runtime, err)
	}
	if proc.Pidfd != nil {
		defer proc.Pidfd.Close()
	}
	d.resetOOMScore(proc)
	name := filepath.Base(c.Runtime) + " " + c.Args[0]
	ws, err := d.awaitCommand(ctx, proc, c)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if ws.Exited() && ws.ExitStatus() == 0 {
		return nil
	}
	return commandError(name, ws, c)
}

// spawn executes a program with these descriptors, /dev/null for nil.
func (d *Driver) spawn(argv []string, files []*os.File) (procfd.Child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return procfd.Child{}, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: helper.PlainEnv, Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range files {
		if f == nil {
			f = null
		}
		attr.Files = append(attr.Files, uintptr(unixfd.Of(f)))
	}
	return d.Reaper.Start(argv, attr)
}

// RunProgram executes a program of ours that is no runtime, with these descriptors, and waits for
// its end as Run does, with the times of c. It keeps our oom_score_adj. Where argv has the words of
// Mark, the program counts as a runtime of our tasks. ErrNotStarted: there was never a process.
func (d *Driver) RunProgram(
	ctx context.Context, argv []string, files []*os.File, c Command,
) (unix.WaitStatus, error) {
	proc, err := d.spawn(argv, files)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	if proc.Pidfd != nil {
		defer proc.Pidfd.Close()
	}
	if err := d.begun(ctx, proc, c); err != nil {
		return 0, errors.Join(err, d.endCommand(proc))
	}
	return d.awaitCommand(ctx, proc, c)
}

// begun calls Begun.
func (d *Driver) begun(ctx context.Context, proc procfd.Child, c Command) error {
	if c.Begun == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	return c.Begun(ctx, proc)
}

// ErrNotStarted: the node has no memory for a process, or forbids to execute the program.
var ErrNotStarted = errors.New("the program was not started")

// Mark returns the words by which the command line of a runtime of our tasks is recognised, also by
// shims of other versions.
func (d *Driver) Mark() []string { return []string{"--root", d.state.RuncRoot(), "place"} }

// argv returns the whole command line.
func (c Command) argv(root string) []string {
	argv := []string{c.Runtime, "--root", root, "--log", c.Log, "--log-format", "json"}
	if c.Systemd {
		argv = append(argv, "--systemd-cgroup")
	}
	return append(argv, c.Args...)
}

// awaitCommand waits for the command within its time limits, and then kills it.
func (d *Driver) awaitCommand(ctx context.Context, proc procfd.Child, c Command) (unix.WaitStatus, error) {
	deadline := time.NewTimer(c.Wait)
	defer deadline.Stop()
	over := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(c.Grace, func() { close(over) }) })()
	why := fmt.Errorf("still running after %v: %w", c.Wait, context.DeadlineExceeded)
	select {
	case ws := <-proc.Done:
		return ws, nil
	case <-deadline.C:
	case <-over:
		why = context.Cause(ctx)
	}
	select {
	case ws := <-proc.Done: // it has just ended
		return ws, nil
	default:
	}
	if err := d.endCommand(proc); err != nil {
		why = fmt.Errorf("%w: %w", err, why)
	}
	return 0, why
}

// endCommand kills the command and everything that it has started, and waits until it is dead.
func (d *Driver) endCommand(proc procfd.Child) error {
	d.killCommand(proc)
	select {
	case <-proc.Done:
		return nil
	case <-time.After(wire.KilledWait):
		return fmt.Errorf("process %d did not exit after SIGKILL", proc.Pid)
	}
}

// killCommand kills a command of ours and everything that it has started. It stops the command
// first, so that it starts nothing more while we look for its children.
func (d *Driver) killCommand(proc procfd.Child) {
	if proc.Pidfd != nil {
		_ = procfd.Signal(proc.Pidfd, unix.SIGSTOP)
		awaitStopped(proc.Pid)
		procfd.KillDescendants(proc.Pidfd)
	}
	d.Reaper.KillGroup(proc.Pid)
}

// awaitStopped waits up to 100 ms until a process that was sent SIGSTOP has stopped or ended. A
// process that is stuck in the kernel does neither.
func awaitStopped(pid int) {
	for range 100 {
		if st, err := procfd.ReadStat(pid); err != nil || strings.IndexByte("TtZX", st.State) >= 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func startError(runtime string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("execute runtime %s: %v: %w", runtime, err, errdefs.ErrFailedPrecondition)
	case helper.OutOfResources(err):
		return fmt.Errorf("execute runtime %s: %v: %w", runtime, err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("execute runtime %s: %w", runtime, err)
}

// commandError returns the error of a command that failed: at most 4 KiB of the last error in its
// log, or otherwise of what it has printed.
func commandError(name string, ws unix.WaitStatus, c Command) error {
	end := fmt.Sprintf("exit status %d", ws.ExitStatus())
	if ws.Signaled() {
		end = "killed by " + unix.SignalName(ws.Signal())
	}
	msg := lastLogError(c.Log)
	if msg == "" && c.Said != nil {
		if msg = lastWords(c.Said()); msg != "" {
			msg = end + ": " + msg
		}
	}
	if msg == "" {
		return fmt.Errorf("%s: %s", name, end)
	}
	if class := classOfMessage(msg); class != nil {
		return fmt.Errorf("%s: %s: %w", name, msg, class)
	}
	return fmt.Errorf("%s: %s", name, msg)
}

// classOfMessage returns the class of known messages of runtimes, nil for others. ErrNotFound and
// ErrPermissionDenied are about the program to execute: 127 and 126 in a shell.
func classOfMessage(msg string) error {
	about := strings.Contains(msg, "exec: ") || strings.Contains(msg, "exec /")
	switch {
	case strings.Contains(msg, "executable file not found"), about && strings.Contains(msg, "no such file or directory"):
		return errdefs.ErrNotFound
	case strings.Contains(msg, "exec format error"), about &&
		(strings.Contains(msg, "permission denied") || strings.Contains(msg, "is a directory")):
		return errdefs.ErrPermissionDenied
	case strings.Contains(msg, "stopped container"), strings.Contains(msg, "container not running"):
		return errdefs.ErrFailedPrecondition
	}
	for _, lack := range lacks {
		if strings.Contains(msg, lack) {
			return errdefs.ErrResourceExhausted
		}
	}
	return nil
}

// lacks are messages which mean that the node has too little of some resource now.
var lacks = []string{"no space left on device", "resource temporarily unavailable", "disk quota exceeded",
	"cannot allocate memory",
	"too many open files", "cannot fork"}

// lastLogError returns the last message of level error or worse in the last 64 KiB of a runtime's
// JSON log, or otherwise the last line that is not JSON.
func lastLogError(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 64 << 10
	if st, err := f.Stat(); err == nil && st.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return ""
		}
	}
	raw, _ := io.ReadAll(io.LimitReader(f, tail))
	var last string
	for line := range bytes.Lines(raw) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil {
			if entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic" {
				last = entry.Msg
			}
		} else if text := strings.TrimSpace(string(line)); text != "" && last == "" {
			last = text
		}
	}
	return strings.ToValidUTF8(last[max(0, len(last)-4096):], "?")
}

// resetOOMScore sets the oom_score_adj of a child to 0, because it inherits the shim's.
func (d *Driver) resetOOMScore(c procfd.Child) {
	if !d.ownOOM || c.Pidfd == nil {
		return
	}
	// proc stays bound to this process even if the pid is reused.
	proc, err := os.OpenRoot(fmt.Sprintf("/proc/%d", c.Pid))
	if err != nil {
		return
	}
	defer proc.Close()
	if procfd.StillHas(c.Pidfd, c.Pid) == nil {
		_ = proc.WriteFile("oom_score_adj", []byte("0"), 0)
	}
}
