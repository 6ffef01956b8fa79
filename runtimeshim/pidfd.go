package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openPidfd refers to a process (or zombie) by number. unix.ESRCH when there is none.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// pidfdFile wraps a descriptor that is a pidfd already.
func pidfdFile(fd int) *os.File {
	_ = unix.SetNonblock(fd, true) // fails for what is no descriptor only
	return os.NewFile(uintptr(fd), "pidfd")
}

// isGone tells the errors of a process that is not there (any more) from those of a look that failed.
func isGone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) }

// openSame opens a pidfd of the process that has this number and start time. unix.ESRCH when it is
// gone; any other error says nothing about it.
func openSame(pid int, ticks uint64) (*os.File, error) {
	if pid <= 1 {
		return nil, unix.ESRCH
	}
	f, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	// In this order: while we hold the pidfd of a process that is not reaped
	// after the comparison, the number was its own throughout.
	st, err := readProcStat(pid)
	if err == nil && st.StartTicks != ticks || isGone(err) {
		err = unix.ESRCH
	}
	if err == nil {
		err = stillHas(f, pid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// stillHas returns nil while the process behind f is not reaped, so that its number is its own:
// what was read by that number after f was opened is about it. unix.ESRCH afterwards.
func stillHas(f *os.File, pid int) error {
	now, err := pidfdPid(f)
	if err == nil && now != pid {
		err = unix.ESRCH
	}
	return err
}

// killDescendants sends SIGKILL to the children of a process, to theirs and so on. The runtime's own
// helper leaves the process group early.
func killDescendants(parent *os.File) {
	for range killRounds { // one may have been in the middle of a fork
		for _, kid := range childrenOf(parent) {
			_ = signalPidfd(kid, unix.SIGSTOP)
			killDescendants(kid)
			_ = signalPidfd(kid, unix.SIGKILL)
			kid.Close()
		}
	}
}

const killRounds = 2

// childrenOf returns pidfds of the children of a process that live, the caller's to close.
//
// A number from a list may be somebody else's when it is opened: only who is in a second list too,
// of a parent that has kept its own number, is meant.
func childrenOf(parent *os.File) []*os.File {
	pid, err := pidfdPid(parent)
	if err != nil || pid <= 0 {
		return nil
	}
	opened := openAll(listChildren(pid))
	still := listChildren(pid)
	if stillHas(parent, pid) != nil {
		still = nil
	}
	return pick(opened, still)
}

// openAll opens a pidfd for each number of a list, as far as there is such a process.
func openAll(pids []int) map[int]*os.File {
	opened := map[int]*os.File{}
	for _, pid := range pids {
		if f, err := openPidfd(pid); err == nil {
			opened[pid] = f
		}
	}
	return opened
}

// pick returns those of opened that are in the list and live, and closes the others.
func pick(opened map[int]*os.File, list []int) []*os.File {
	var found []*os.File
	for pid, f := range opened {
		if slices.Contains(list, pid) && !readable(fdOf(f)) {
			found = append(found, f)
		} else {
			f.Close()
		}
	}
	return found
}

func listChildren(pid int) []int {
	var kids []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range files {
		raw, _ := os.ReadFile(name)
		for _, w := range strings.Fields(string(raw)) {
			if n, err := strconv.Atoi(w); err == nil {
				kids = append(kids, n)
			}
		}
	}
	return kids
}

// signalPidfd sends sig to the process. unix.ESRCH once it is reaped.
func signalPidfd(f *os.File, sig unix.Signal) error {
	fd := fdOf(f)
	if fd < 0 {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// waitDead returns nil when the process has ended (it may be a zombie still),
// or the context's error. It costs no thread.
func waitDead(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	f.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Now()) })()
	err = raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// readable: poll says that a read (or, for a pidfd, the end of the process) has come.
func readable(fd int) bool { return polled(fd, unix.POLLIN) }

func polled(fd int, events int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents != 0
}

// pidfdPid is the number of the process behind f, -1 once it is reaped.
func pidfdPid(f *os.File) (int, error) {
	raw, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fdOf(f)))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(rest))
		}
	}
	return 0, fmt.Errorf("descriptor is not a pidfd")
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, first published size.
type pidfdInfo struct {
	Mask     uint64
	CgroupID uint64
	Pid      uint32
	Tgid     uint32
	Ppid     uint32
	ids      [8]uint32
	ExitCode int32
}

// pidfdGetInfo is PIDFD_GET_INFO for that size.
const pidfdGetInfo = 0xc0<<24 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xff<<8 | 11

// noPidfdInfo makes the shim behave as on a kernel before 6.15; for tests.
var noPidfdInfo = os.Getenv("CRIBOX_TEST_NO_PIDFD_INFO") == "1"

// pidfdExit is the wait status of a process that somebody else has reaped.
// False when it is not reaped yet, or the kernel (before 6.15) does not keep it.
func pidfdExit(f *os.File) (unix.WaitStatus, bool) {
	if noPidfdInfo {
		return 0, false
	}
	info := pidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fdOf(f)), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.ExitCode), true
}

// procStat is what we use of /proc/PID/stat (proc(5)).
type procStat struct {
	State      byte
	Exiting    bool            // PF_EXITING of field 9
	Session    int             // field 6
	StartTicks uint64          // field 22, clock ticks since boot
	ExitCode   unix.WaitStatus // field 52, of a zombie
}

func readProcStat(pid int) (procStat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// The second field is a name in brackets, which may contain anything.
	_, rest, _ := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 50 {
		return procStat{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f)+2)
	}
	flags, err := strconv.ParseUint(f[9-3], 10, 64)
	if err != nil {
		return procStat{}, err
	}
	st := procStat{State: f[0][0], Exiting: flags&4 != 0}
	if st.Session, err = strconv.Atoi(f[6-3]); err != nil {
		return procStat{}, err
	}
	if st.StartTicks, err = strconv.ParseUint(f[22-3], 10, 64); err != nil {
		return procStat{}, err
	}
	code, err := strconv.ParseUint(f[52-3], 10, 32)
	st.ExitCode = unix.WaitStatus(code)
	return st, err
}

// exitCode is the code as a shell shows it: 0..255, 128+n for signal n.
func exitCode(ws unix.WaitStatus) int32 {
	if ws.Signaled() {
		return 128 + int32(ws.Signal())
	}
	return int32(ws.ExitStatus())
}
