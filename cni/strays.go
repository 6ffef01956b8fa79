package cni

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// strayRounds bounds how often the processes are listed again because one more was found, started meanwhile.
const strayRounds = 5

// killStrays ends every process with this run's mark in its environment: children
// that left its group too. It reads /proc and is for failures only.
func (r *run) killStrays() {
	for range strayRounds {
		if !killMarked([]byte(r.mark)) {
			return
		}
	}
}

func killMarked(mark []byte) (found bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !hasMark(pid, mark) {
			continue
		}
		found = killIfMarked(pid, mark) || found
	}
	return found
}

// killIfMarked looks again through a pidfd, so that a number given to another process meanwhile is safe.
func killIfMarked(pid int, mark []byte) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return hasMark(pid, mark) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

func hasMark(pid int, mark []byte) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(env, mark)
}
