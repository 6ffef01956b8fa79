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

// CounterWatch remembers the last value of counters in cgroup files whose changes the kernel
// reports: those of version 2. When the last process of a scope ends, systemd removes its cgroup
// and the counter with it, perhaps before anybody has read it: the kernel reports changes up to 10 ms
// late. The Ledger finds what was counted last.
//
// It polls the open files. It does not use inotify, whose watches are a quota per user that the
// root of any container without a user namespace could use up.
type CounterWatch struct {
	parse    func(text []byte) uint64
	ReadFile func(file string) ([]byte, error)
	wake     int // eventfd: the list of files to poll has changed
	ledger   *Ledger

	mu    sync.Mutex
	files map[string]*os.File // nil: it could not be opened yet
	last  map[string]uint64
}

// NewCounterWatch returns a CounterWatch, which begins to watch once Run is called. parse returns
// the counter in the text of a file.
func NewCounterWatch(parse func([]byte) uint64) (*CounterWatch, error) {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch cgroup counters: %w", err)
	}
	return &CounterWatch{parse: parse, ReadFile: os.ReadFile, wake: wake, ledger: newLedger(),
		files: map[string]*os.File{}, last: map[string]uint64{}}, nil
}

// Run records changes until ctx ends.
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
			_, _ = unix.Read(w.wake, buf[:]) // only to reset it
		}
		for i, name := range names {
			if fds[i+1].Revents != 0 {
				w.changed(name)
			}
		}
	}
}

// toPoll lists the eventfd and the open files. It tries to open those that could not be opened
// before, and returns a short timeout if that fails again.
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

// open opens a listed file and reads it, because poll reports only changes after that.
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

// changed reads a file again. It closes a file that cannot be read, because poll would report it
// without end, and opens it again if the cgroup still exists.
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
	// Not 0 in either byte order. If the write fails, the eventfd is full and wakes the poll
	// anyway.
	_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 1})
}

// Expect must be called before the task starts whose cgroup has the file, so that not even the
// first kill is missed. Drop takes it back.
func (w *CounterWatch) Expect(file string) { w.ledger.Begin(file) }

// Add starts to watch file, if it is a memory.events; other files do not report changes.
func (w *CounterWatch) Add(file string) {
	w.ledger.Begin(file)
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

// Value returns the highest count seen, or of a scope that is gone, what its slice has counted for
// it. If the counter cannot be read, it retries for a while and then returns an error.
func (w *CounterWatch) Value(file string) (uint64, error) {
	now, err := readCounter(file, w.ReadFile, w.parse)
	if _, gone := os.Lstat(file); errors.Is(gone, os.ErrNotExist) {
		now = max(now, w.ledger.Kills(file))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now = max(now, w.last[file])
	if now > 0 {
		w.last[file] = now // Drop tells the ledger
	}
	return now, err
}

// Drop stops watching a file.
func (w *CounterWatch) Drop(file string) {
	w.mu.Lock()
	f, last := w.files[file], w.last[file]
	delete(w.last, file)
	delete(w.files, file)
	w.mu.Unlock()
	w.ledger.End(file, last)
	unixfd.CloseAll([]*os.File{f})
	w.nudge()
}

// readCounter reads a counter. It retries when reading fails, because a lack of descriptors or
// memory is temporary. Only a cgroup that is gone counts as 0.
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
			return 0, fmt.Errorf("read cgroup counter: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// isCgroupGone reports whether err means that the cgroup is removed: ENODEV for a file already
// open.
func isCgroupGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
