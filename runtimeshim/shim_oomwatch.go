package runtimeshim

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// counterWatch keeps the last value of counters in files of cgroups whose
// changes the kernel tells: those of version 2. systemd removes the cgroup of a
// scope, and the counter with it, when the last process has ended, which may be
// before anybody has read it.
type counterWatch struct {
	read func(file string) uint64

	inotify *os.File
	fd      int // of inotify

	mu    sync.Mutex
	files map[int]string // by watch descriptor
	last  map[string]uint64
}

// newCounterWatch returns nil when the kernel has no watches left: then a
// counter is what its file says at the time.
func newCounterWatch(read func(string) uint64) *counterWatch {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		log.L.WithError(err).Warn("OOM kills are not watched")
		return nil
	}
	return &counterWatch{read: read, inotify: os.NewFile(uintptr(fd), "inotify"), fd: fd, files: map[int]string{}, last: map[string]uint64{}}
}

// run notes what changes, until ctx ends.
func (w *counterWatch) run(ctx context.Context) {
	if w == nil {
		return
	}
	defer survive()
	defer context.AfterFunc(ctx, func() { w.inotify.Close() })()
	buf := make([]byte, 64*unix.SizeofInotifyEvent)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		for event := buf[:n]; len(event) >= unix.SizeofInotifyEvent; {
			w.changed(int(int32(binary.NativeEndian.Uint32(event))))
			name := binary.NativeEndian.Uint32(event[12:])
			event = event[min(len(event), unix.SizeofInotifyEvent+int(name)):]
		}
	}
}

func (w *counterWatch) changed(wd int) {
	w.mu.Lock()
	file, ok := w.files[wd]
	w.mu.Unlock()
	if !ok {
		return
	}
	now := w.read(file)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.files[wd] == file {
		w.last[file] = max(w.last[file], now)
	}
}

// add begins to watch a memory.events; nothing else is told of.
func (w *counterWatch) add(file string) {
	if w == nil || filepath.Base(file) != "memory.events" {
		return
	}
	w.addFile(file)
}

func (w *counterWatch) addFile(file string) {
	w.mu.Lock()
	wd, err := unix.InotifyAddWatch(w.fd, file, unix.IN_MODIFY)
	if err == nil {
		w.files[wd] = file
	}
	w.mu.Unlock()
	if err == nil {
		w.changed(wd) // what was before
	}
}

// value returns the highest count seen.
func (w *counterWatch) value(file string) uint64 {
	if w == nil {
		return oomKills(file)
	}
	now := w.read(file)
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(now, w.last[file])
}

// drop forgets a file.
func (w *counterWatch) drop(file string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.last, file)
	for wd, f := range w.files {
		if f == file {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // gone with the file already, at times
			delete(w.files, wd)
		}
	}
}
