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

// keeperFD is the number under which the process of a pod task inherits the socket.
const keeperFD = 3

// keeper lets the descriptors of a pod's tasks survive the shim.
//
// It is a bound unix datagram socket that the pod's own process inherits and
// never reads. The shim sends into it, one datagram per task, what it holds of
// that task; nobody receives it, so the descriptors stay open in flight for as
// long as that process lives: the pidfd that knows the exit status, the FIFOs
// with what nobody has read yet, the terminal, the writing end of stdin.
//
// The socket sends to itself, which the kernel exempts from
// net.unix.max_dgram_qlen; room for about 200 tasks is in its send buffer.
type keeper struct {
	mu     sync.Mutex
	sock   int
	path   string
	queued int
	closed bool
}

// keptHead is the text of a datagram; Kinds names its descriptors in order.
type keptHead struct {
	ID    string   `json:"id"`
	Kinds []string `json:"kinds"`
}

// kept is one task's datagram. As an answer of recall its files belong to the receiver.
type kept struct {
	keptHead
	files []*os.File
}

func (k *kept) add(kind string, f *os.File) {
	if f != nil {
		k.Kinds, k.files = append(k.Kinds, kind), append(k.files, f)
	}
}

// take hands out the file of a kind, nil for none.
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

// ended takes the descriptor of a process that is gone, and that knows how it went; nil for none.
// One that is still alive, under another number, is not the task's.
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

// close closes what nobody has taken.
func (k *kept) close() {
	if k != nil {
		unixfd.CloseAll(k.files)
		k.Kinds, k.files = nil, nil
	}
}

// newKeeper makes the socket of a pod task.
func newKeeper(d statedir.Task) (*keeper, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make keeper of %s: %w", d.ID(), err)
	}
	os.Remove(d.Keeper())
	k := &keeper{sock: fd, path: d.Keeper()}
	err = k.withAddr(func(a unix.Sockaddr) error { return unix.Bind(fd, a) })
	if err == nil {
		err = unix.Chmod(d.Keeper(), 0o600)
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("make keeper of %s: %w", d.ID(), err)
	}
	return k, nil
}

// withAddr calls f with the socket's address in a form that fits sun_path.
func (k *keeper) withAddr(f func(unix.Sockaddr) error) error {
	dir, err := unix.Open(filepath.Dir(k.path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f(&unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(k.path))})
}

// findKeeper takes the socket out of the pod's process, which must have it as
// descriptor 3: a datagram socket bound to the name of a keeper. Anything else
// is an error; a pod with a foreign pause program has no keeper. What comes out
// of it is checked by the receiver all the same.
func findKeeper(d statedir.Task, pidfd *os.File) (*keeper, error) {
	fd, err := unix.PidfdGetfd(unixfd.Of(pidfd), keeperFD, 0)
	if err != nil {
		return nil, fmt.Errorf("find keeper of %s: %w", d.ID(), err)
	}
	k := &keeper{sock: fd, path: d.Keeper()}
	if err := k.check(); err != nil {
		k.close()
		return nil, fmt.Errorf("find keeper of %s: %w", d.ID(), err)
	}
	return k, nil
}

func (k *keeper) check() error {
	if kind, err := unix.GetsockoptInt(k.sock, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
		return fmt.Errorf("descriptor %d is no datagram socket", keeperFD)
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

// keep replaces what is in flight by items. The new datagrams are sent before
// the old ones are received, so that at no moment a descriptor is held by us
// alone.
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
		// The old ones stay: too much is kept rather than too little.
		k.queued += sent
		return fmt.Errorf("keep descriptors of %s: %w", filepath.Base(filepath.Dir(k.path)), err)
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

// recall returns duplicates of everything in flight and leaves it there. Of several datagrams of
// one task the newest comes last. An error: not all of it could be received now.
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

var errJunk = errors.New("not a datagram of ours")

func (k *keeper) receive(flags int) (kept, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*wire.MaxFiles))
	n, oobn, got, _, err := unix.Recvmsg(k.sock, buf, oob, flags|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return kept{}, err
	}
	it := kept{files: unixfd.Received(oob[:oobn])}
	if got&unix.MSG_CTRUNC != 0 { // the kernel gives what there are numbers for
		it.close()
		return kept{}, fmt.Errorf("receive what is kept: %w", unix.EMFILE)
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

// file is a duplicate of the socket, to be inherited.
func (k *keeper) file() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(k.sock), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "keeper"), nil
}
