package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// keeperFD is the descriptor number that the socket has in the process of a pod task.
const keeperFD = 3

// keeper is a socket that keeps the descriptors of a pod's tasks open when the shim dies.
//
// It is a bound unix datagram socket that the pod's own process inherits and never reads. The shim
// sends one datagram per task into it, with the descriptors it holds for that task. Nobody receives
// the datagrams, so the descriptors stay open in flight as long as that process lives: the pidfd
// that knows the exit status, the FIFOs with unread output, the terminal, the write end of stdin.
//
// The socket sends to itself, which the kernel exempts from net.unix.max_dgram_qlen; its send
// buffer holds about 200 tasks.
type keeper struct {
	mu     sync.Mutex
	sock   int
	path   string
	queued int
	closed bool
}

// keptHead is the text of a datagram; Kinds lists the kinds of its descriptors in order.
type keptHead struct {
	ID    string   `json:"id"`
	Kinds []string `json:"kinds"`
}

// kept is the datagram of one task. The caller of recall owns the files in it.
type kept struct {
	keptHead
	files []*os.File
}

func (k *kept) add(kind string, f *os.File) {
	if f != nil {
		k.Kinds, k.files = append(k.Kinds, kind), append(k.files, f)
	}
}

// take returns the file of a kind and removes it from k; nil if there is none.
func (k *kept) take(kind string) *os.File {
	if k == nil {
		return nil
	}
	for i, name := range k.Kinds {
		if name == kind && i < len(k.files) {
			f := k.files[i]
			k.files[i] = nil
			return f
		}
	}
	return nil
}

// ended returns a duplicate of the pidfd, if its process is reaped: that pidfd still knows the exit
// status. Otherwise nil; a process that is still alive, under another pid, is not the task's.
func (k *kept) ended() (*os.File, error) {
	if k == nil {
		return nil, nil
	}
	i := slices.Index(k.Kinds, "pidfd")
	if i < 0 || i >= len(k.files) || k.files[i] == nil {
		return nil, nil
	}
	pid, err := procfd.PidOf(k.files[i])
	if err != nil || pid != -1 {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(unixfd.Of(k.files[i])), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return procfd.FromFD(fd), nil
}

// close closes the files that have not been taken.
func (k *kept) close() {
	if k != nil {
		unixfd.CloseAll(k.files)
		k.Kinds, k.files = nil, nil
	}
}

// newKeeper creates the socket of a pod task.
func newKeeper(d statedir.Task) (*keeper, error) {
	label, err := processLabel(d.Config())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := labelledSocket(label)
	if err != nil {
		return nil, fmt.Errorf("make the socket that keeps the descriptors of pod %s: %w", d.ID(), err)
	}
	os.Remove(d.Keeper())
	k := &keeper{sock: fd, path: d.Keeper()}
	err = k.withAddr(func(a unix.Sockaddr) error { return unix.Bind(fd, a) })
	if err == nil {
		err = unix.Chmod(d.Keeper(), 0o600)
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("make the socket that keeps the descriptors of pod %s: %w", d.ID(), err)
	}
	return k, nil
}

// withAddr calls f with an address of the socket that is short enough for sun_path.
func (k *keeper) withAddr(f func(unix.Sockaddr) error) error {
	dir, err := unix.Open(filepath.Dir(k.path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f(&unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(k.path))})
}

// findKeeper duplicates the socket out of the pod's process, where it must be descriptor 3: a
// datagram socket bound to the path of a keeper. Anything else is an error; a pod with another
// pause program has no keeper. The receiver still validates what it reads from the socket.
func findKeeper(d statedir.Task, pidfd *os.File) (*keeper, error) {
	fd, err := unix.PidfdGetfd(unixfd.Of(pidfd), keeperFD, 0)
	if err != nil {
		return nil, fmt.Errorf("find the socket that keeps the descriptors of pod %s: %w", d.ID(), err)
	}
	k := &keeper{sock: fd, path: d.Keeper()}
	if err := k.check(); err != nil {
		k.close()
		return nil, fmt.Errorf("find the socket that keeps the descriptors of pod %s: %w", d.ID(), err)
	}
	return k, nil
}

func (k *keeper) check() error {
	if kind, err := unix.GetsockoptInt(k.sock, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
		return fmt.Errorf("descriptor %d is not a datagram socket", keeperFD)
	}
	addr, err := unix.Getsockname(k.sock)
	if err != nil {
		return err
	}
	un, ok := addr.(*unix.SockaddrUnix)
	if !ok || filepath.Base(un.Name) != filepath.Base(k.path) {
		return fmt.Errorf("descriptor %d is not bound to %s", keeperFD, k.path)
	}
	return unix.SetNonblock(k.sock, true)
}

// keep replaces the datagrams in flight by items. It sends the new datagrams before it receives the
// old ones, so that each descriptor is in flight at all times.
func (k *keeper) keep(items []kept) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	sent, err := 0, error(nil)
	for _, it := range items {
		if err = k.send(it); err != nil {
			break
		}
		sent++
	}
	if err != nil {
		// The old ones stay: it is better to keep too much than too little.
		k.queued += sent
		return fmt.Errorf("keep descriptors of task %s: %w", filepath.Base(filepath.Dir(k.path)), err)
	}
	for range k.queued {
		it, err := k.receive(0)
		if err != nil {
			break
		}
		unixfd.CloseAll(it.files)
	}
	k.queued = sent
	return nil
}

func (k *keeper) send(it kept) error {
	head, err := json.Marshal(it.keptHead)
	if err != nil {
		return err
	}
	return k.withAddr(func(a unix.Sockaddr) error {
		return unix.Sendmsg(k.sock, head, unixfd.Rights(it.files), a, unix.MSG_DONTWAIT)
	})
}

// recall returns duplicates of everything in flight, which stays in flight. If a task has several
// datagrams, the newest comes last. An error means that not everything could be received now.
func (k *keeper) recall() ([]kept, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := unix.SetsockoptInt(k.sock, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, err
	}
	defer func() { _ = unix.SetsockoptInt(k.sock, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1) }()
	var all []kept
	for k.queued = 0; ; k.queued++ {
		it, err := k.receive(unix.MSG_PEEK)
		switch {
		case errors.Is(err, errJunk):
		case errors.Is(err, unix.EAGAIN):
			return all, nil
		case err != nil:
			for _, it := range all {
				it.close()
			}
			return nil, err
		default:
			all = append(all, it)
		}
	}
}

var errJunk = errors.New("datagram has an unknown format")

func (k *keeper) receive(flags int) (kept, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*wire.MaxFiles))
	n, oobn, got, _, err := unix.Recvmsg(k.sock, buf, oob, flags|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return kept{}, err
	}
	it := kept{files: unixfd.Received(oob[:oobn])}
	// The kernel passes only as many descriptors as there are free numbers.
	if got&unix.MSG_CTRUNC != 0 {
		it.close()
		return kept{}, fmt.Errorf("receive kept descriptors: %w", unix.EMFILE)
	}
	if json.Unmarshal(buf[:n], &it.keptHead) != nil || len(it.Kinds) != len(it.files) {
		unixfd.CloseAll(it.files)
		return kept{}, errJunk
	}
	return it, nil
}

func (k *keeper) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.closed = true
		unix.Close(k.sock)
	}
}

// file returns a duplicate of the socket, for a process to inherit.
func (k *keeper) file() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(k.sock), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "keeper"), nil
}
