package procfd

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

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Open returns a pidfd of the process (or zombie) with this pid. unix.ESRCH when there is none.
func Open(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, openError(pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// openError returns unix.ESRCH for the EINVAL of older kernels: Linux 6.1 gives it for a process
// that is reaped while its number still names a session or a process group, and for the number of a
// thread. Neither is a process. For a number that no process can have, EINVAL stays.
func openError(pid int, err error) error {
	if pid > 0 && errors.Is(err, unix.EINVAL) {
		return unix.ESRCH
	}
	return err
}

// FromFD wraps a descriptor that already is a pidfd.
func FromFD(fd int) *os.File {
	_ = unix.SetNonblock(fd, true) // fails only if fd is not a descriptor
	return os.NewFile(uintptr(fd), "pidfd")
}

// Gone reports whether err means that the process no longer exists, not that looking for it failed.
func Gone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) }

// OpenSame returns a pidfd of the process that has this pid and start time. unix.ESRCH when it is
// gone; any other error says nothing about the process.
func OpenSame(pid int, ticks uint64) (*os.File, error) {
	if pid <= 1 {
		return nil, unix.ESRCH
	}
	f, err := Open(pid)
	if err != nil {
		return nil, err
	}
	// The order matters: while we hold the pidfd of a process that is not reaped after the
	// comparison, the pid belonged to it all the time.
	st, err := ReadStat(pid)
	if err == nil && st.StartTicks != ticks || Gone(err) {
		err = unix.ESRCH
	}
	if err == nil {
		err = StillHas(f, pid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// StillHas returns nil while the process of f is not reaped, so that pid is still its own: whatever
// was read by pid since f was opened is about this process. Otherwise unix.ESRCH.
func StillHas(f *os.File, pid int) error {
	now, err := PidOf(f)
	if err == nil && now != pid {
		err = unix.ESRCH
	}
	return err
}

// KillDescendants sends SIGKILL to all descendants of a process. Killing the process group is not
// enough: the runtime's own helper process leaves the group early.
func KillDescendants(parent *os.File) {
	for range killRounds { // a process may have been in the middle of a fork
		for _, kid := range childrenOf(parent) {
			_ = Signal(kid, unix.SIGSTOP)
			KillDescendants(kid)
			_ = Signal(kid, unix.SIGKILL)
			kid.Close()
		}
	}
}

const killRounds = 2

// childrenOf returns pidfds of the living children of a process; the caller must close them.
//
// A pid from the list may be reused before it is opened. So only children that are also in a second
// list, read while the parent still has its pid, are returned.
func childrenOf(parent *os.File) []*os.File {
	pid, err := PidOf(parent)
	if err != nil || pid <= 0 {
		return nil
	}
	opened := OpenAll(ListChildren(pid))
	still := ListChildren(pid)
	if StillHas(parent, pid) != nil {
		still = nil
	}
	return pick(opened, still)
}

// OpenAll opens a pidfd for each pid in the list whose process exists.
func OpenAll(pids []int) map[int]*os.File {
	opened := map[int]*os.File{}
	for _, pid := range pids {
		if f, err := Open(pid); err == nil {
			opened[pid] = f
		}
	}
	return opened
}

// pick returns the living processes of opened whose pids are in list, and closes the others.
func pick(opened map[int]*os.File, list []int) []*os.File {
	var found []*os.File
	for pid, f := range opened {
		if slices.Contains(list, pid) && !unixfd.Readable(unixfd.Of(f)) {
			found = append(found, f)
		} else {
			f.Close()
		}
	}
	return found
}

// ListChildren returns the pids of the children of all threads of a process.
func ListChildren(pid int) []int {
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

// Signal sends sig to the process. unix.ESRCH once it is reaped.
func Signal(f *os.File, sig unix.Signal) error {
	fd := unixfd.Of(f)
	if fd < 0 {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// WaitDead returns nil once the process has ended (it may still be a zombie), or the error of ctx.
// It does not block a thread.
func WaitDead(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	f.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Now()) })()
	err = raw.Read(func(fd uintptr) bool { return unixfd.Readable(int(fd)) })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// PidOf returns the pid of the process of f, -1 once it is reaped.
func PidOf(f *os.File) (int, error) {
	raw, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(unixfd.Of(f)))
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

// pidfdInfo is struct pidfd_info of linux/pidfd.h, in the size first published.
type pidfdInfo struct {
	Mask     uint64
	CgroupID uint64
	Pid      uint32
	Tgid     uint32
	Ppid     uint32
	ids      [8]uint32
	ExitCode int32
}

// pidfdGetInfo is the ioctl PIDFD_GET_INFO for that size.
const pidfdGetInfo = 0xc0<<24 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xff<<8 | 11

// noPidfdInfo makes the shim behave as on a kernel before 6.15, for tests.
var noPidfdInfo = os.Getenv("CRIBOX_TEST_NO_PIDFD_INFO") == "1"

// KeepsExits reports whether the kernel keeps how a process has ended for who has its pidfd: ExitOf.
func KeepsExits() bool {
	var name unix.Utsname
	var major, minor int
	if noPidfdInfo || unix.Uname(&name) != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 15)
}

// ExitOf returns the wait status of a process that another process has reaped. False when it is not
// reaped yet, or the kernel (before 6.15) does not record the status.
func ExitOf(f *os.File) (unix.WaitStatus, bool) {
	if noPidfdInfo {
		return 0, false
	}
	info := pidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(unixfd.Of(f)), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.ExitCode), true
}

// Stat has the fields of /proc/PID/stat (proc(5)) that we use.
type Stat struct {
	State      byte
	Exiting    bool            // PF_EXITING of field 9
	Session    int             // field 6
	StartTicks uint64          // field 22, clock ticks since boot
	ExitCode   unix.WaitStatus // field 52, set for a zombie
}

// ReadStat reads /proc/PID/stat.
func ReadStat(pid int) (Stat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, err
	}
	// The second field is the command name in parentheses, which may itself contain parentheses.
	_, rest, _ := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 50 {
		return Stat{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f)+2)
	}
	flags, err := strconv.ParseUint(f[9-3], 10, 64)
	if err != nil {
		return Stat{}, err
	}
	st := Stat{State: f[0][0], Exiting: flags&4 != 0}
	if st.Session, err = strconv.Atoi(f[6-3]); err != nil {
		return Stat{}, err
	}
	if st.StartTicks, err = strconv.ParseUint(f[22-3], 10, 64); err != nil {
		return Stat{}, err
	}
	code, err := strconv.ParseUint(f[52-3], 10, 32)
	st.ExitCode = unix.WaitStatus(code)
	return st, err
}

// ExitCode returns the exit code as a shell shows it: 0..255, 128+n for signal n.
func ExitCode(ws unix.WaitStatus) int32 {
	if ws.Signaled() {
		return 128 + int32(ws.Signal())
	}
	return int32(ws.ExitStatus())
}
