package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// CounterWatch keeps the last value of counters in files of cgroups whose
// changes the kernel tells: those of version 2. systemd removes the cgroup of a
// scope, and the counter with it, when the last process has ended, which may be
// before anybody has read it.
//
// It polls the open files. Watches of inotify are a quota per user, which the root
// of any container without a user namespace could use up.
type CounterWatch struct {
	parse    func(text []byte) uint64
	ReadFile func(file string) ([]byte, error)
	wake     int // eventfd: there is something else to poll

	mu    sync.Mutex
	files map[string]*os.File // nil: it could not be opened yet
	last  map[string]uint64
}

// NewCounterWatch watches what parse finds in the text of a file, once Run is called.
func NewCounterWatch(parse func([]byte) uint64) (*CounterWatch, error) {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch the counters of cgroups: %w", err)
	}
	return &CounterWatch{parse: parse, ReadFile: os.ReadFile, wake: wake, files: map[string]*os.File{}, last: map[string]uint64{}}, nil
}

// Run notes what changes, until ctx ends.
func (w *CounterWatch) Run(ctx context.Context) {
	defer helper.Survive()
	defer context.AfterFunc(ctx, w.nudge)()
	for ctx.Err() == nil {
		names, fds, wait := w.toPoll()
		if _, err := unix.Poll(fds, wait); err != nil && !errors.Is(err, unix.EINTR) {
			helper.Pause(ctx, helper.LookAgain)
			continue
		}
		if fds[0].Revents != 0 {
			var buf [8]byte
			_, _ = unix.Read(w.wake, buf[:]) // only to empty it
		}
		for i, name := range names {
			if fds[i+1].Revents != 0 {
				w.changed(name)
			}
		}
	}
}

// toPoll lists the open files behind the eventfd. It opens those that could not be opened before,
// and wants to be called again soon when one still cannot.
func (w *CounterWatch) toPoll() (names []string, fds []unix.PollFd, wait int) {
	w.mu.Lock()
	var closed []string
	for name, f := range w.files {
		if f == nil {
			closed = append(closed, name)
		}
	}
	w.mu.Unlock()
	for _, name := range closed {
		w.open(name)
	}
	fds, wait = []unix.PollFd{{Fd: int32(w.wake), Events: unix.POLLIN}}, -1
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, f := range w.files {
		if f == nil {
			wait = int(helper.LookAgain / time.Millisecond)
			continue
		}
		names, fds = append(names, name), append(fds, unix.PollFd{Fd: int32(unixfd.Of(f)), Events: unix.POLLPRI})
	}
	return names, fds, wait
}

// open opens a file that is in the list, and reads it: the kernel tells of what comes afterwards.
func (w *CounterWatch) open(name string) {
	f, err := os.Open(name)
	w.mu.Lock()
	old, listed := w.files[name]
	switch {
	case !listed || old != nil:
		unixfd.CloseAll([]*os.File{f})
		f = nil
	case isCgroupGone(err):
		delete(w.files, name)
	case err == nil:
		w.files[name] = f
	}
	w.mu.Unlock()
	if f != nil {
		w.changed(name)
	}
}

// changed reads a file again. One that cannot be read is closed, because the kernel would tell
// of it without end; it is opened again if the cgroup is still there.
func (w *CounterWatch) changed(name string) {
	w.mu.Lock()
	f := w.files[name]
	w.mu.Unlock()
	if f == nil {
		return
	}
	buf := make([]byte, 4096)
	n, err := f.ReadAt(buf, 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.files[name] != f {
		return
	}
	if err == nil || errors.Is(err, io.EOF) {
		w.last[name] = max(w.last[name], w.parse(buf[:n]))
		return
	}
	f.Close()
	w.files[name] = nil
	if isCgroupGone(err) {
		delete(w.files, name)
	}
}

func (w *CounterWatch) nudge() {
	_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // of either byte order; full = it is awake
}

// Add begins to watch a memory.events; nothing else is told of.
func (w *CounterWatch) Add(file string) {
	if filepath.Base(file) == "memory.events" {
		w.addFile(file)
	}
}

func (w *CounterWatch) addFile(file string) {
	w.mu.Lock()
	if _, ok := w.files[file]; !ok {
		w.files[file] = nil
	}
	w.mu.Unlock()
	w.open(file)
	w.nudge()
}

// Value returns the highest count seen. A counter that cannot be read is not 0: it is read again,
// for a while.
func (w *CounterWatch) Value(file string) (uint64, error) {
	now, err := readCounter(file, w.ReadFile, w.parse)
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(now, w.last[file]), err
}

// Drop forgets a file.
func (w *CounterWatch) Drop(file string) {
	w.mu.Lock()
	f := w.files[file]
	delete(w.last, file)
	delete(w.files, file)
	w.mu.Unlock()
	unixfd.CloseAll([]*os.File{f})
	w.nudge()
}

// readCounter reads a counter, and again while it cannot be read: want of descriptors or of memory
// passes. Only a cgroup that is gone has counted nothing.
func readCounter(file string, read func(string) ([]byte, error), parse func([]byte) uint64) (uint64, error) {
	if file == "" {
		return 0, nil
	}
	for tries := 0; ; tries++ {
		text, err := read(file)
		if err == nil {
			return parse(text), nil
		}
		if isCgroupGone(err) {
			return 0, nil
		}
		if tries == 50 {
			return 0, fmt.Errorf("read a counter of a cgroup: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// isCgroupGone tells the errors of a cgroup that is removed, ENODEV of a file that was open before.
func isCgroupGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
