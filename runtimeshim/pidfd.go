package runtimeshim

import (
	"context"
	"fmt"
	"os"
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
