package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// start runs a task whose folder the client has prepared. On error nothing of
// it is left but that folder. It is finished whether or not the caller waits:
// half a start serves nobody.
func (s *shim) start(ctx context.Context, p taskParams) (Task, error) {
	if err := errors.Join(checkID(p.ID), s.checkParams(p)); err != nil {
		return Task{}, err
	}
	ctx = context.WithoutCancel(ctx)
	t, err := s.insert(taskRecord{Format: recordFormat, taskParams: p, State: stateStarting})
	if err != nil {
		return Task{}, err
	}
	defer t.unlock()
	if err := s.launch(ctx, t); err != nil {
		if errdefs.IsNotFound(err) || errdefs.IsPermissionDenied(err) { // of its program; the task itself was there
			err = fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
		}
		return Task{}, fmt.Errorf("start task %s: %w", p.ID, errors.Join(err, s.abandon(ctx, t)))
	}
	s.step("shim.start.started")
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.view(), nil
}

func (s *shim) checkParams(p taskParams) error {
	switch {
	case p.Pod != "" && checkID(p.Pod) != nil:
		return checkID(p.Pod)
	case !filepath.IsAbs(p.Runtime):
		return fmt.Errorf("runtime %q is not an absolute path: %w", p.Runtime, errdefs.ErrInvalidArgument)
	case p.OOMFile != "" && !strings.HasPrefix(filepath.Clean(p.OOMFile), "/sys/fs/cgroup/"):
		return fmt.Errorf("OOM file %q is not a cgroup's: %w", p.OOMFile, errdefs.ErrInvalidArgument)
	}
	return s.checkLockFile(p.LockFile)
}

func (s *shim) checkLockFile(path string) error {
	if path != "" && !strings.HasPrefix(filepath.Clean(path), string(s.state)+"/") {
		return fmt.Errorf("lock file %q is not in the state folder: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// launch takes the task from "starting" to "running".
func (s *shim) launch(ctx context.Context, t *task) error {
	os.Remove(t.dir.pid())
	os.Remove(t.dir.exit())
	os.Remove(t.dir.oom())
	var err error
	if t.rec.OOMBase, err = oomKills(t.rec.OOMFile); err != nil {
		return err
	}
	if err := writeJSON(t.dir.record(), t.rec); err != nil {
		return err
	}
	s.step("shim.start.intent")
	release := s.reaper.hold()
	defer release()
	if err := s.runTask(ctx, t); err != nil {
		return err
	}
	s.step("shim.start.runc")
	pid, err := readPid(t.dir.pid())
	if err != nil {
		return err
	}
	proc, err := s.reaper.claim(pid)
	if err != nil {
		return err
	}
	return s.running(t, proc)
}

// running records the process and begins to wait for its end.
func (s *shim) running(t *task, proc child) error {
	ticks, err := startTicks(proc.pid)
	if err != nil {
		closeAll([]*os.File{proc.pidfd})
		return err
	}
	s.mu.Lock()
	t.pidfd = proc.pidfd
	t.rec.Pid, t.rec.StartTicks, t.rec.StartedAt, t.rec.State = proc.pid, ticks, time.Now(), stateRunning
	rec := t.rec // a kill may change it from here on
	s.mu.Unlock()
	// First what must survive us, then the record that relies on it: a terminal without its master is
	// lost, and then this was no start.
	s.refreshKeeper(t.rec.Pod)
	s.step("shim.start.kept")
	err = writeJSON(t.dir.record(), rec)
	s.kills.add(t.rec.OOMFile)
	go func() {
		s.ended(t, exitOf(<-proc.done))
	}()
	return err
}

// startTicks reads the start time of a child of ours; 0 when it has ended and is reaped, and nobody
// will look for it. A record without it would be one of a process that is gone.
func startTicks(pid int) (uint64, error) {
	for tries := 0; ; tries++ {
		st, err := readProcStat(pid)
		if err == nil || isGone(err) {
			return st.StartTicks, nil
		}
		if tries == 50 {
			return 0, fmt.Errorf("find the start time of process %d: %w", pid, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runTask executes the runtime's run, and once more without the option that not every runtime has.
func (s *shim) runTask(ctx context.Context, t *task) error {
	lock, err := s.lockShared(ctx, t.lockFile())
	if err != nil {
		return err
	}
	defer lock.Close()
	keeper := t.rec.Keeper && !s.lacksPreserveFDs(t.rec.Runtime)
	err = s.runTaskOnce(ctx, t, lock, keeper)
	if keeper && errors.Is(err, errNoPreserveFDs) {
		log.L.WithField("runtime", t.rec.Runtime).Warn("runtime has no run --preserve-fds: what a pod's containers print, and how they end, is lost when all of cribox is killed at once")
		s.mu.Lock()
		s.noPreserveFDs[t.rec.Runtime] = true
		s.mu.Unlock()
		keeper = false
		s.dropStreams(t)
		err = s.runTaskOnce(ctx, t, lock, keeper)
	}
	if err != nil && !t.shareKeyring && strings.Contains(err.Error(), "session key") && errdefs.IsResourceExhausted(err) {
		// Keys of root are a quota of the whole node, which any container without a user namespace can use up.
		log.L.WithError(err).WithField("container", t.rec.ID).Warn("no keyring is left; the task is started without one of its own")
		t.shareKeyring = true
		s.dropStreams(t)
		err = s.runTaskOnce(ctx, t, lock, keeper)
	}
	return err
}

// runTaskOnce opens the task's streams and executes the runtime's run.
func (s *shim) runTaskOnce(ctx context.Context, t *task, lock *os.File, keeper bool) error {
	c := ociCommand{runtime: t.rec.Runtime, systemd: t.rec.Systemd, log: t.dir.runtimeLog(), wait: startWait,
		args: []string{"run", "--detach", "--bundle", t.dir.bundle(), "--pid-file", t.dir.pid()}}
	if keeper {
		f, err := s.giveKeeper(t)
		if err != nil {
			return err
		}
		defer f.Close()
		c.args, c.extra = append(c.args, "--preserve-fds", "1"), append(c.extra, f)
	}
	if t.shareKeyring {
		c.args = append(c.args, "--no-new-keyring")
	}
	c.extra = append(c.extra, lock)
	if t.rec.Terminal {
		return s.runOnTerminal(ctx, t, c)
	}
	stdin, err := s.openStdio(t)
	if err != nil {
		return err
	}
	if stdin != nil {
		defer stdin.Close()
	}
	c.stdio = [3]*os.File{stdin, t.fifos[0], t.fifos[1]}
	c.args = append(c.args, t.rec.ID)
	if !t.rec.Keeper {
		c.said = func() string { return spooled(t.dir, t.fifos[1]) }
		return s.run(ctx, c)
	}
	errs, err := newErrPipe(t.rec.OwnerUID, t.rec.OwnerGID) // a pod's own process prints nothing
	if err != nil {
		return err
	}
	defer errs.close()
	c.stdio[2], c.said = errs.w, errs.text
	err = s.run(ctx, c)
	if err != nil && strings.Contains(errs.text()+err.Error(), "preserve-fds") {
		err = fmt.Errorf("%w: %w", err, errNoPreserveFDs)
	}
	return err
}

// errNoPreserveFDs: the runtime does not know the option.
var errNoPreserveFDs = errors.New("no option --preserve-fds")

// lacksPreserveFDs: this runtime has refused the option before.
func (s *shim) lacksPreserveFDs(runtime string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noPreserveFDs[runtime]
}

// dropStreams takes back what a failed attempt to start a task has opened.
func (s *shim) dropStreams(t *task) {
	s.mu.Lock()
	keeper, files := t.keeper, append(t.fifos, t.stdin)
	t.keeper, t.fifos, t.stdin = nil, nil, nil
	s.mu.Unlock()
	if keeper != nil {
		keeper.close()
	}
	closeAll(files)
}

func (s *shim) giveKeeper(t *task) (*os.File, error) {
	k, err := newKeeper(t.dir)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	t.keeper = k
	s.mu.Unlock()
	return k.file()
}

// openStdio opens the FIFOs, and a pipe for stdin whose reading end it returns
// (nil without Stdin). The FIFOs are opened for reading and writing and passed
// on like that: the task is its own reader, so it never sees EPIPE.
func (s *shim) openStdio(t *task) (*os.File, error) {
	var fifos []*os.File
	for _, name := range []string{t.dir.stdout(), t.dir.stderr()} {
		f, err := openTaskFIFO(name)
		if err != nil {
			closeAll(fifos)
			return nil, err
		}
		fifos = append(fifos, f)
	}
	var r, w *os.File
	if t.rec.Stdin {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			closeAll(fifos)
			return nil, err
		}
		r, w = os.NewFile(uintptr(fds[0]), "stdin"), os.NewFile(uintptr(fds[1]), "stdin")
		if err := r.Chown(t.rec.OwnerUID, t.rec.OwnerGID); err != nil {
			closeAll(append(fifos, r, w))
			return nil, err
		}
	}
	s.mu.Lock()
	t.fifos, t.stdin = fifos, w
	s.mu.Unlock()
	return r, nil
}

// openTaskFIFO opens a FIFO of the task folder, and nothing else.
func openTaskFIFO(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, fmt.Errorf("%s is no FIFO: %w", name, errdefs.ErrFailedPrecondition)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// runOnTerminal runs with a terminal that the runtime makes and hands over.
func (s *shim) runOnTerminal(ctx context.Context, t *task, c ociCommand) error {
	c.args = append(c.args, t.rec.ID)
	tty, err := s.runWithConsole(ctx, c)
	if err != nil {
		return err
	}
	return s.attachTerminal(t, tty)
}

// runWithConsole executes the command, whose last argument is the id, with a
// console socket and returns the terminal's master.
func (s *shim) runWithConsole(ctx context.Context, c ociCommand) (*os.File, error) {
	console, err := s.newConsole()
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
	if err := s.runQuietly(ctx, c); err != nil {
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

// attachTerminal starts pumping the terminal into the FIFO stdout.
func (s *shim) attachTerminal(t *task, tty *os.File) error {
	fifo, err := openTaskFIFO(t.dir.stdout())
	if err != nil {
		tty.Close()
		return err
	}
	p, err := newPump(tty, t.dir.stdout())
	s.mu.Lock()
	t.tty, t.fifos, t.pump = tty, []*os.File{fifo}, p
	s.mu.Unlock()
	return err
}

// lockShared opens a lock file with a shared lock, to be inherited by
// the runtime. ErrUnavailable when somebody holds it exclusively for long.
func (s *shim) lockShared(ctx context.Context, path string) (*os.File, error) {
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

// lockFile is the file that every runtime process of the task inherits locked.
func (t *task) lockFile() string {
	if t.rec.LockFile != "" {
		return t.rec.LockFile
	}
	return t.dir.at("lock")
}

// readPid reads a runtime's pid file.
func readPid(name string) (int, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("pid file %s says %.40q: %w", name, raw, errdefs.ErrDataLoss)
	}
	return pid, nil
}

// abandon undoes a start that failed, bounded by its own clock.
func (s *shim) abandon(ctx context.Context, t *task) error {
	ctx, cancel := context.WithTimeout(ctx, deleteWait+10*time.Second)
	defer cancel()
	err := s.clear(ctx, t)
	os.Remove(t.dir.record())
	os.Remove(t.dir.pid())
	s.forget(t)
	return err
}
