package unixfd

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// CloseInherited closes all descriptors above 2 that this process inherited without the
// close-on-exec flag. The shim and the logger outlive the daemon: if they inherited the write end
// of a pipe, the script that reads from it would wait forever. Descriptors that systemd passes
// (sd_listen_fds(3)) stay open here, but child processes do not inherit them.
func CloseInherited() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	passed := 0
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		passed, _ = strconv.Atoi(os.Getenv("LISTEN_FDS"))
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		// This process itself opens everything with the close-on-exec flag.
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		if fd < 3+passed {
			unix.CloseOnExec(fd)
		} else {
			_ = unix.Close(fd)
		}
	}
}
