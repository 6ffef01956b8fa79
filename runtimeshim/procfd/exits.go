package procfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Exits hears from the kernel how processes end that are not our children, over the proc connector
// (linux/cn_proc.h). Linux before 6.15 tells nobody else but their parent, who may be quicker to take
// the status than we are to read it. It needs the host's network and PID namespaces; elsewhere
// it hears nothing.
//
// A socket filter lets through what is asked for only, so nothing wakes us for the other processes of
// the host. The zero value is ready for use.
type Exits struct {
	mu     sync.Mutex
	socket *os.File // nil while nobody is followed
	of     map[int]*Exit
}

// Exit is how one process ends.
type Exit struct {
	all    *Exits
	pid    int
	status unix.WaitStatus // of the thread that has ended last
	first  chan struct{}   // closed when the first thread has ended; another one after an execve(2)
	told   bool            // first is closed
}

// Follow begins to listen for the end of a process, before it is known that the process is there. The
// caller calls Forget. An error if nothing will be heard.
func (e *Exits) Follow(pid int) (*Exit, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.socket == nil {
		socket, err := openConnector()
		if err != nil {
			return nil, fmt.Errorf("listen for the ends of processes: %w", err)
		}
		e.socket, e.of = socket, map[int]*Exit{}
		go e.listen(socket)
	}
	x := &Exit{all: e, pid: pid, first: make(chan struct{})}
	e.of[pid] = x
	return x, e.filter()
}

// Forget ends the listening. It may be called for nil.
func (x *Exit) Forget() {
	if x == nil {
		return
	}
	e := x.all
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of[x.pid] != x {
		return
	}
	delete(e.of, x.pid)
	if len(e.of) > 0 {
		_ = e.filter() // a filter that lets too much through does no harm
		return
	}
	// Else the kernel would go on to make messages, for nobody.
	_ = request(e.socket, ignore)
	e.socket.Close()
	e.socket = nil
}

// How long the kernel may take to tell about a process that is dead, and about its other threads.
const (
	heardWait  = time.Second
	threadWait = 20 * time.Millisecond
)

// Status returns the wait status of a process that has ended; false if it was not heard.
func (x *Exit) Status() (unix.WaitStatus, bool) {
	if x == nil {
		return 0, false
	}
	x.all.mu.Lock()
	first := x.first
	x.all.mu.Unlock()
	select {
	case <-first:
	case <-time.After(heardWait):
		return 0, false
	}
	time.Sleep(threadWait) // that it is dead is known a moment before its last thread is heard
	x.all.mu.Lock()
	defer x.all.mu.Unlock()
	return x.status, true
}

// Numbers of linux/connector.h and linux/cn_proc.h, and where the fields of a message are.
const (
	connectorProc = 1 // CN_IDX_PROC and CN_VAL_PROC
	listenToAll   = 1 // PROC_CN_MCAST_LISTEN
	ignore        = 2 // PROC_CN_MCAST_IGNORE
	eventExec     = 2
	eventExit     = 0x80000000

	connectorAt, lengthAt, bodyAt              = unix.SizeofNlMsghdr, unix.SizeofNlMsghdr + 16, unix.SizeofNlMsghdr + 20
	whatAt, threadAt, processAt, codeAt        = bodyAt, bodyAt + 16, bodyAt + 20, bodyAt + 24
	messageSize                                = codeAt + 4
	maxFollowed                                = 300 // more make a filter that is too large
	pass                                uint32 = 0xffff
)

// openConnector returns a socket that hears nothing yet.
func openConnector() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "proc connector")
	err = attachFilter(fd, nil)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: connectorProc})
	}
	if err == nil {
		err = request(f, listenToAll)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// request asks the kernel for an operation: with a struct nlmsghdr, a struct cn_msg and its number.
func request(socket *os.File, operation uint32) error {
	b := make([]byte, bodyAt+4)
	order := binary.NativeEndian
	order.PutUint32(b, uint32(len(b)))
	order.PutUint16(b[4:], unix.NLMSG_DONE)
	order.PutUint32(b[connectorAt:], connectorProc)
	order.PutUint32(b[connectorAt+4:], connectorProc)
	order.PutUint16(b[lengthAt:], 4)
	order.PutUint32(b[bodyAt:], operation)
	return unix.Sendto(unixfd.Of(socket), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// filter lets through the ends of the processes that are followed. It requires the lock.
func (e *Exits) filter() error {
	raw, err := e.socket.SyscallConn()
	if err != nil {
		return err
	}
	var attachErr error
	err = raw.Control(func(fd uintptr) { attachErr = attachFilter(int(fd), slices.Sorted(maps.Keys(e.of))) })
	return errors.Join(err, attachErr)
}

// attachFilter attaches a program of bpf(4) that passes the ends of threads, and execve(2), of some
// processes; of all if those are too many.
func attachFilter(fd int, pids []int) error {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jump = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	code := []unix.SockFilter{
		{Code: load, K: whatAt},
		{Code: jump, Jt: 2, K: loaded(eventExit)},
		{Code: jump, Jt: 1, K: loaded(eventExec)},
		{Code: ret, K: 0},
		{Code: load, K: processAt},
	}
	for _, pid := range pids[:min(len(pids), maxFollowed)] {
		code = append(code, unix.SockFilter{Code: jump, Jf: 1, K: loaded(uint32(pid))}, unix.SockFilter{Code: ret, K: pass})
	}
	var last uint32
	if len(pids) > maxFollowed {
		last = pass
	}
	code = append(code, unix.SockFilter{Code: ret, K: last})
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
}

// loaded is a number of this machine as a filter sees it, which loads in the order of the network.
func loaded(n uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n))
}

// listen notes what the kernel tells until the socket is closed.
func (e *Exits) listen(socket *os.File) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1024)
	for {
		n, fromKernel := 0, false
		err := raw.Read(func(fd uintptr) bool {
			var from unix.Sockaddr
			var err error
			n, from, err = unix.Recvfrom(int(fd), buf, 0)
			sender, ok := from.(*unix.SockaddrNetlink)
			fromKernel = err == nil && ok && sender.Pid == 0
			return !errors.Is(err, unix.EAGAIN)
		})
		if err != nil {
			return
		}
		if fromKernel && n >= messageSize {
			e.heard(buf[:n])
		}
	}
}

// heard notes the end of a thread. One other than the first may call execve(2): then the first ends as
// the others do, and the one that goes on has its number.
func (e *Exits) heard(message []byte) {
	field := func(at int) int { return int(binary.NativeEndian.Uint32(message[at:])) }
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.of[field(processAt)]
	switch {
	case x == nil:
		return
	case field(whatAt) == eventExec && x.told:
		x.first, x.told = make(chan struct{}), false
		return
	case field(whatAt) != eventExit:
		return
	}
	x.status = unix.WaitStatus(field(codeAt))
	if field(threadAt) == x.pid && !x.told {
		x.told = true
		close(x.first)
	}
}
