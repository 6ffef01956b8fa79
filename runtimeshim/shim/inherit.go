package shim

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
)

// fixedEnv is set in a process that already has what children shall inherit.
const fixedEnv = "CRIBOX_SHIM_LIMITS"

// fixInheritance executes the program again with fixed resource limits, signals and environment. Go
// raises its own soft limit of open files at startup and gives children the original one, so only
// exec can set the limits of children.
func fixInheritance() error {
	if os.Getenv(fixedEnv) != "" {
		return nil
	}
	for what, soft := range map[int]uint64{unix.RLIMIT_NOFILE: 1024, unix.RLIMIT_NPROC: unix.RLIM_INFINITY,
		unix.RLIMIT_CORE: unix.RLIM_INFINITY} {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(what, &l); err != nil {
			return fmt.Errorf("read resource limit %d: %w", what, err)
		}
		l.Cur = min(soft, l.Max)
		if err := syscall.Setrlimit(what, &l); err != nil {
			return fmt.Errorf("set resource limit %d: %w", what, err)
		}
	}
	exe, err := os.Executable()
	if err != nil || strings.HasSuffix(exe, " (deleted)") {
		exe = "/proc/self/exe"
	}
	heedSignals()
	return fmt.Errorf("re-execute the shim: %w", syscall.Exec(exe, os.Args, append(helper.Env(), fixedEnv+"=1")))
}

// sigaction is the kernel's struct sigaction on 64-bit machines, see rt_sigaction(2).
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const (
	sigIgnore  = 1 // SIG_IGN
	lastSignal = 64
)

// heedSignals sets each signal that is ignored back to its default action, because containers would
// inherit it: nohup ignores SIGHUP, and GNU make starts its commands with 32 and 33 ignored, which
// Go passes on.
func heedSignals() {
	for signal := uintptr(1); signal <= lastSignal; signal++ {
		var now, byDefault sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, 0, uintptr(unsafe.Pointer(&now)), 8, 0, 0)
		if errno == 0 && now.handler == sigIgnore {
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		}
	}
}
