package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// holder owns the descriptors that the shim holds for tasks: FIFOs, stdin, terminals, and the
// keeper sockets of pods, which hold the same descriptors for a later shim.
type holder struct {
	env
	table *table

	keeping sync.Mutex // held while a keeper is changed; taken before table.mu
}

// openStdio opens the FIFOs, and a pipe for stdin whose read end it returns (nil without Stdin).
// The FIFOs are opened for reading and writing, and the task inherits them like that: because it is
// its own reader, it never gets EPIPE.
func (h *holder) openStdio(t *task) (*os.File, error) {
	var fifos []*os.File
	for _, name := range []string{t.dir.Stdout(), t.dir.Stderr()} {
		f, err := openTaskFIFO(name)
		if err != nil {
			unixfd.CloseAll(fifos)
			return nil, err
		}
		fifos = append(fifos, f)
	}
	var r, w *os.File
	if t.rec.Stdin {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			unixfd.CloseAll(fifos)
			return nil, err
		}
		r, w = os.NewFile(uintptr(fds[0]), "stdin"), os.NewFile(uintptr(fds[1]), "stdin")
		if err := r.Chown(t.rec.OwnerUID, t.rec.OwnerGID); err != nil {
			unixfd.CloseAll(append(fifos, r, w))
			return nil, err
		}
	}
	h.table.mu.Lock()
	t.fifos, t.stdin = fifos, w
	h.table.mu.Unlock()
	return r, nil
}

// openTaskFIFO opens a FIFO of the task folder. An error if the file is anything else.
func openTaskFIFO(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, fmt.Errorf("%s is not a FIFO: %w", name, errdefs.ErrFailedPrecondition)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// attachTerminal starts to move the output of the terminal into the FIFO stdout.
func (h *holder) attachTerminal(t *task, tty *os.File) error {
	fifo, err := openTaskFIFO(t.dir.Stdout())
	if err != nil {
		tty.Close()
		return err
	}
	p, err := newPump(tty, t.dir.Stdout())
	h.table.mu.Lock()
	t.tty, t.fifos, t.pump = tty, []*os.File{fifo}, p
	h.table.mu.Unlock()
	return err
}

func (h *holder) giveKeeper(t *task) (*os.File, error) {
	k, err := newKeeper(t.dir)
	if err != nil {
		return nil, err
	}
	h.table.mu.Lock()
	t.keeper = k
	h.table.mu.Unlock()
	return k.file()
}

// fds sends the daemon's ends of a task's streams: terminal and stdin, in the order that the reply
// names them.
func (h *holder) fds(_ context.Context, in *wire.Inbound) (any, error) {
	var b wire.Task
	if err := in.Decode(&b); err != nil {
		return nil, err
	}
	t, err := h.table.runningTask(b.ID)
	if err != nil {
		return nil, err
	}
	var kinds []string
	h.table.mu.Lock()
	for kind, f := range map[string]*os.File{"terminal": t.tty, "stdin": t.stdin} {
		if f == nil {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(unixfd.Of(f)), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			h.table.mu.Unlock()
			return nil, fmt.Errorf("duplicate %s of task %s: %w", kind, b.ID, err)
		}
		kinds = append(kinds, kind)
		in.Attach(os.NewFile(uintptr(fd), kind))
	}
	if t.rec.StdinOnce && t.stdin != nil {
		given := t.stdin
		t.stdin, t.giving = nil, given
		in.Afterwards(func(sent error) { h.giveAway(t, given, sent) })
	}
	h.table.mu.Unlock()
	return kinds, nil
}

// giveAway closes a stdin that has been sent to its only user, here and in the pod's keeper socket.
// It runs after the reply, so that a shim that dies in between leaves stdin to the next shim. If
// sending failed, the next caller gets it.
func (h *holder) giveAway(t *task, stdin *os.File, sent error) {
	h.table.mu.Lock()
	if t.giving != stdin {
		h.table.mu.Unlock()
		return // the task's streams are already closed
	}
	t.giving = nil
	if sent != nil {
		t.stdin = stdin
	}
	h.table.mu.Unlock()
	if sent == nil {
		h.refreshKeeper(t.rec.Pod)
		stdin.Close()
	}
}

// finishTerminal moves the remaining output of a task's terminal to where the logger reads it.
func (h *holder) finishTerminal(t *task) {
	h.table.mu.Lock()
	pump := t.pump
	h.table.mu.Unlock()
	if pump != nil && !pump.finish(lastOutput) {
		log.L.WithField("container", t.dir.ID()).
			Error("the end of a terminal's output was lost: the logger did not read what came before")
	}
}

// refreshKeeper puts the descriptors of the pod's tasks into the pod's keeper socket. Best effort:
// they are needed only if the shim dies. The lock ensures that the last caller writes the latest
// state.
func (h *holder) refreshKeeper(pod string) {
	h.keeping.Lock()
	defer h.keeping.Unlock()
	h.table.mu.Lock()
	p := h.table.tasks[pod]
	if p == nil || p.keeper == nil {
		h.table.mu.Unlock()
		return
	}
	keeper := p.keeper
	var items []kept
	for _, t := range h.table.tasks {
		// What the keeper socket holds for this task must stay.
		if t.keptBy == pod || t.unknown && t.rec.Pod == pod {
			h.table.mu.Unlock()
			return
		}
		if t.rec.Pod == pod && t.rec.State == runtimeshim.StateRunning && !t.rec.Released {
			items = append(items, t.toKeep())
		}
	}
	h.table.mu.Unlock()
	if err := keeper.keep(items); err != nil {
		log.L.WithError(err).WithField("pod", pod).
			Warn("cannot store descriptors outside the shim; they would be lost with it")
	}
}

// letGo closes the task's streams. It removes them from the pod's keeper first, so that a
// descriptor number which has been reused is never sent.
func (h *holder) letGo(t *task) {
	h.table.mu.Lock()
	files := append(t.fifos, t.stdin, t.giving, t.tty)
	pump := t.pump
	t.fifos, t.stdin, t.giving, t.tty, t.pump = nil, nil, nil, nil, nil
	h.table.mu.Unlock()
	h.refreshKeeper(t.rec.Pod)
	if pump != nil {
		pump.close()
	}
	unixfd.CloseAll(files)
}

// dropStreams closes what a failed attempt to start a task has opened.
func (h *holder) dropStreams(t *task) {
	h.table.mu.Lock()
	keeper, files := t.keeper, append(t.fifos, t.stdin)
	t.keeper, t.fifos, t.stdin = nil, nil, nil
	h.table.mu.Unlock()
	if keeper != nil {
		keeper.close()
	}
	unixfd.CloseAll(files)
}

// recallAll finds the keeper sockets of the pods and returns the descriptors in them, by task id.
func (h *holder) recallAll(all []*task) (map[string]*kept, error) {
	saved := map[string]*kept{}
	for _, t := range all {
		if !t.rec.Keeper || t.rec.State != runtimeshim.StateRunning {
			continue
		}
		pidfd, err := procfd.OpenSame(t.rec.Pid, t.rec.StartTicks)
		if procfd.Gone(err) {
			continue
		}
		var k *keeper
		if err == nil {
			k, err = findKeeper(t.dir, pidfd)
			pidfd.Close()
		}
		if err != nil && helper.OutOfResources(err) { // the next shim may have enough
			return nil, fmt.Errorf("find the descriptors kept for pod %s: %w", t.rec.ID, err)
		}
		if err != nil {
			log.L.WithError(err).WithField("pod", t.rec.ID).Warn("cannot find the socket that keeps the pod's descriptors")
			continue
		}
		t.keeper = k
		if err := h.recall(k, t.rec.ID, saved); err != nil {
			return nil, fmt.Errorf("find the descriptors kept for pod %s: %w", t.rec.ID, err)
		}
	}
	return saved, nil
}

// recall adds to saved the descriptors in one pod's keeper socket.
func (h *holder) recall(k *keeper, pod string, saved map[string]*kept) error {
	all, err := k.recall()
	if err != nil {
		return err
	}
	for _, it := range all {
		h.table.mu.Lock()
		other := h.table.tasks[it.ID]
		h.table.mu.Unlock()
		switch {
		case other != nil && other.rec.Format == 0: // which pod it belongs to is not known yet
			other.saved.close()
			other.saved, other.keptBy = &it, pod
		case other == nil || other.rec.Pod != pod:
			it.close()
		default:
			saved[it.ID].close()
			saved[it.ID] = &it
		}
	}
	return nil
}

// reopenFIFOs opens the FIFOs that exist.
func reopenFIFOs(d statedir.Task) ([]*os.File, error) {
	var fifos []*os.File
	for _, name := range []string{d.Stdout(), d.Stderr()} {
		f, err := openTaskFIFO(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			unixfd.CloseAll(fifos)
			return nil, err
		}
		if err == nil {
			fifos = append(fifos, f)
		}
	}
	return fifos, nil
}

// forget removes a task from the table and closes the shim's descriptors for it. The caller holds
// op.
func (h *holder) forget(t *task) {
	h.table.mu.Lock()
	t.deleted = true
	delete(h.table.tasks, t.rec.ID)
	keeper := t.keeper
	t.keeper = nil
	h.table.mu.Unlock()
	h.letGo(t)
	h.table.mu.Lock()
	pidfd := t.pidfd
	t.pidfd = nil
	h.table.mu.Unlock()
	unixfd.CloseAll([]*os.File{pidfd})
	if keeper != nil {
		keeper.close()
	}
}

// reopen opens the task's streams again, except those that are open.
func (h *holder) reopen(t *task, saved *kept) error {
	if t.fifos == nil {
		fifos, err := reopenFIFOs(t.dir)
		if err != nil {
			return err
		}
		h.table.mu.Lock()
		t.fifos = fifos
		h.table.mu.Unlock()
	}
	h.table.mu.Lock()
	if t.stdin == nil {
		t.stdin = saved.take("stdin")
	}
	if t.tty == nil {
		t.tty = saved.take("tty")
	}
	tty, pumping := t.tty, t.pump != nil
	h.table.mu.Unlock()
	if tty == nil || pumping {
		return nil
	}
	p, err := newPump(tty, t.dir.Stdout())
	if err != nil {
		return fmt.Errorf("cannot read the terminal: %w", err)
	}
	h.table.mu.Lock()
	t.pump = p
	h.table.mu.Unlock()
	return nil
}
