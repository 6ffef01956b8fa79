package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// closeInherited closes the descriptors that whoever started us has left open beyond the first
// three. The shim and the logger outlive the daemon: a pipe that stays open in them keeps the
// script at its other end waiting for ever. What systemd passes on purpose (sd_listen_fds(3)) stays
// open in this process and goes to no other.
func closeInherited() {
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
		// Everything that is opened in here has the flag.
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
