package runtimeshim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Deadlines of the runtime's commands. A command that is over it is killed
// with its process group. Tests shorten them.
var (
	startWait  = 60 * time.Second
	deleteWait = 30 * time.Second
	updateWait = 30 * time.Second
	killedWait = 5 * time.Second // from SIGKILL to the end of a process that is not stuck in the kernel
)

// runtimeEnv is all that a runtime, and so a hook of it, gets as environment.
var runtimeEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// ociCommand is one execution of an OCI command line runtime.
type ociCommand struct {
	runtime string
	log     string        // file for its JSON log, removed before; the last error in it is the error returned
	systemd bool          // makes the task's cgroup
	args    []string      // after the global options
	stdio   [3]*os.File   // nil = /dev/null
	extra   []*os.File    // descriptors 3 and up
	said    func() string // what the command has printed, for a reason that is not in its log; nil = nobody knows
	wait    time.Duration
	grace   time.Duration // how long the command may still run after ctx has ended
}

// driver executes the commands of OCI runtimes, as children of this process.
type driver struct {
	env
	reaper  *reaper
	ownOOM  bool // our own oom_score_adj is not 0, so children need theirs reset
	counter atomic.Uint64
}

// run executes the command and returns nil when it ended with 0. When it is
// over its deadline, or ctx has ended and the grace too, it and its children
// are killed.
func (d *driver) run(ctx context.Context, c ociCommand) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: runtimeEnv, Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range append(c.stdio[:], c.extra...) {
		if f == nil {
			f = null
		}
		attr.Files = append(attr.Files, uintptr(fdOf(f)))
	}
	os.Remove(c.log)
	proc, err := d.reaper.start(c.argv(d.state.runcRoot()), attr)
	if err != nil {
		return startError(c.runtime, err)
	}
	if proc.pidfd != nil {
		defer proc.pidfd.Close()
	}
	d.resetOOMScore(proc)
	name := filepath.Base(c.runtime) + " " + c.args[0]
	ws, err := d.awaitCommand(ctx, proc, c)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if ws.Exited() && ws.ExitStatus() == 0 {
		return nil
	}
	return commandError(name, ws, c)
}

// argv is the whole command line.
func (c ociCommand) argv(root string) []string {
	argv := []string{c.runtime, "--root", root, "--log", c.log, "--log-format", "json"}
	if c.systemd {
		argv = append(argv, "--systemd-cgroup")
	}
	return append(argv, c.args...)
}

// awaitCommand waits for the command within its limits.
func (d *driver) awaitCommand(ctx context.Context, proc child, c ociCommand) (unix.WaitStatus, error) {
	deadline := time.NewTimer(c.wait)
	defer deadline.Stop()
	over := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(c.grace, func() { close(over) }) })()
	why := fmt.Errorf("no end after %v: %w", c.wait, context.DeadlineExceeded)
	select {
	case ws := <-proc.done:
		return ws, nil
	case <-deadline.C:
	case <-over:
		why = context.Cause(ctx)
	}
	select {
	case ws := <-proc.done: // just now
		return ws, nil
	default:
	}
	d.killCommand(proc)
	select {
	case <-proc.done:
	case <-time.After(killedWait):
		why = fmt.Errorf("process %d does not die: %w", proc.pid, why)
	}
	return 0, why
}

// killCommand ends a command of ours and everything that it has started. It is stopped first, so that
// it starts nothing more while we look for what it has.
func (d *driver) killCommand(proc child) {
	if proc.pidfd != nil {
		_ = signalPidfd(proc.pidfd, unix.SIGSTOP)
		awaitStopped(proc.pid)
		killDescendants(proc.pidfd)
	}
	d.reaper.killGroup(proc.pid)
}

// awaitStopped waits until a process that was sent SIGSTOP has stopped, or ended, for a while: one
// that is stuck in the kernel does neither.
func awaitStopped(pid int) {
	for range 100 {
		if st, err := readProcStat(pid); err != nil || strings.IndexByte("TtZX", st.State) >= 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func startError(runtime string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("execute runtime %s: %v: %w", runtime, err, errdefs.ErrFailedPrecondition)
	case outOfResources(err):
		return fmt.Errorf("execute runtime %s: %v: %w", runtime, err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("execute runtime %s: %w", runtime, err)
}

// commandError makes the error of a command that did not end with 0 from the
// last error of its log, at most 4 KiB of it, or else from what it has printed.
func commandError(name string, ws unix.WaitStatus, c ociCommand) error {
	end := fmt.Sprintf("exit status %d", ws.ExitStatus())
	if ws.Signaled() {
		end = "killed by " + unix.SignalName(ws.Signal())
	}
	msg := lastLogError(c.log)
	if msg == "" && c.said != nil {
		if msg = lastWords(c.said()); msg != "" {
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

// classOfMessage knows some sentences of the runtime. ErrNotFound and
// ErrPermissionDenied are about the program to execute: a shell's 127 and 126.
func classOfMessage(msg string) error {
	about := strings.Contains(msg, "exec: ") || strings.Contains(msg, "exec /")
	switch {
	case strings.Contains(msg, "executable file not found"), about && strings.Contains(msg, "no such file or directory"):
		return errdefs.ErrNotFound
	case strings.Contains(msg, "exec format error"), about && (strings.Contains(msg, "permission denied") || strings.Contains(msg, "is a directory")):
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

// lacks are what a runtime says when the node has too little of something, now.
var lacks = []string{"no space left on device", "resource temporarily unavailable", "disk quota exceeded", "cannot allocate memory",
	"too many open files", "cannot fork"}

// lastLogError reads the end of a runtime's JSON log: the last message of level
// error or worse, else the last line that is not JSON.
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

// outlast waits until no process holds the lock file, and kills the runtimes
// that still do after limit.
func (d *driver) outlast(ctx context.Context, path string, limit time.Duration) {
	for end := time.Now().Add(limit); !unlocked(path) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end.Add(killedWait)) {
			return
		}
		if time.Now().After(end) {
			d.killHolders(path)
		}
	}
}

// unlocked: nobody holds the lock file. One that cannot be opened now may be held.
func unlocked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(fdOf(f), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// killHolders sends SIGKILL to the runtimes of ours that have path open, and
// to what they have started. Others may hold it too, the daemon for one.
func (d *driver) killHolders(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fdOf(f)))
	f.Close()
	if err != nil {
		return
	}
	eachName("/proc", func(pid string) {
		if _, err := strconv.Atoi(pid); err != nil {
			return
		}
		fds := filepath.Join("/proc", pid, "fd")
		eachName(fds, func(fd string) {
			// The link is read, not followed: the file may be on a disk that hangs.
			if to, err := os.Readlink(filepath.Join(fds, fd)); err == nil && to == name {
				d.killHolder(filepath.Join(fds, fd), name)
			}
		})
	})
}

// eachName calls f with the names in a folder, some at a time: there may be a million.
func eachName(folder string, f func(name string)) {
	d, err := os.Open(folder)
	if err != nil {
		return
	}
	defer d.Close()
	for err == nil {
		var names []string
		names, err = d.Readdirnames(256)
		for _, name := range names {
			f(name)
		}
	}
}

// killHolder kills the runtime whose descriptor fd, a link in /proc, is the file name.
func (d *driver) killHolder(fd, name string) {
	pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
	f, err := openPidfd(pid)
	if err != nil {
		return
	}
	defer f.Close()
	to, err := os.Readlink(fd) // again: by now the number cannot become another's unseen
	if err != nil || to != name || !d.isRuntime(pid) || stillHas(f, pid) != nil {
		return
	}
	_ = signalPidfd(f, unix.SIGSTOP)
	killDescendants(f)
	_ = signalPidfd(f, unix.SIGKILL)
}

// isRuntime: the process runs a runtime's command that is about our tasks.
func (d *driver) isRuntime(pid int) bool {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Contains(string(cmdline), "\x00--root\x00"+d.state.runcRoot()+"\x00")
}

// lockShared opens a lock file with a shared lock, to be inherited by
// the runtime. ErrUnavailable when somebody holds it exclusively for long.
func (d *driver) lockShared(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; {
		err := unix.Flock(fdOf(f), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) || ctx.Err() != nil {
			f.Close()
			return nil, fmt.Errorf("take lock %s: %v: %w", f.Name(), err, errdefs.ErrUnavailable)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// runWithConsole executes the command, whose last argument is the id, with a
// console socket and returns the terminal's master.
func (d *driver) runWithConsole(ctx context.Context, c ociCommand) (*os.File, error) {
	console, err := d.newConsole()
	if err != nil {
		return nil, err
	}
	defer console.close()
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		tty *os.File
		err error
	}
	got := make(chan result, 1)
	go func() {
		tty, err := console.receive(wait)
		got <- result{tty, err}
	}()
	last := len(c.args) - 1
	c.args = append(c.args[:last:last], "--console-socket", console.path, c.args[last])
	if err := d.runQuietly(ctx, c); err != nil {
		cancel()
		if r := <-got; r.tty != nil {
			r.tty.Close()
		}
		return nil, err
	}
	defer time.AfterFunc(requestWait, cancel).Stop()
	r := <-got
	return r.tty, r.err
}
