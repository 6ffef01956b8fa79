package program

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const (
	// strayRounds limits how often the processes are listed again after one was found, because it
	// may have started another meanwhile.
	strayRounds = 5
	// strayTimeout is how long a run waits for the search. Reading a process's environment takes
	// the lock of its memory, which a process in uninterruptible sleep may hold forever.
	strayTimeout = 5 * time.Second
	// maxHung is how many searches may hang. Each blocks a thread.
	maxHung = 16
)

// straySearch kills the processes that a run left behind. It checks only processes in the cgroup of
// this process, where plugins run: reading the memory of a container's process may never return.
type straySearch struct {
	environ func(pid int) ([]byte, error)
	timeout time.Duration
	hung    atomic.Int32
}

var strays = &straySearch{timeout: strayTimeout, environ: func(pid int) ([]byte, error) {
	return os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
}}

// kill kills every process with the mark in its environment, even if it has left its process group.
// It reads /proc and is used only after failures. It does not wait longer than the timeout for a
// search that hangs.
func (s *straySearch) kill(mark string) {
	if s.hung.Load() >= maxHung {
		log.L.WithField("step", "cni").Warn("skipping the search for processes that a network plugin left behind: " +
			"earlier searches still hang")
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range strayRounds {
			if !s.killMarked([]byte(mark)) {
				return
			}
		}
	}()
	if within(done, s.timeout) {
		return
	}
	log.L.WithField("step", "cni").
		Warn("the search for processes that a network plugin left behind hangs while reading /proc")
	s.hung.Add(1)
	go func() {
		<-done
		s.hung.Add(-1)
	}()
}

func (s *straySearch) killMarked(mark []byte) (found bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	own := cgroupOf(os.Getpid())
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || cgroupOf(pid) != own || !s.hasMark(pid, mark) {
			continue
		}
		found = s.killIfMarked(pid, mark) || found
	}
	return found
}

// killIfMarked checks again through a pidfd, so that a process that has reused the pid is not
// killed.
func (s *straySearch) killIfMarked(pid int, mark []byte) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return s.hasMark(pid, mark) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

func (s *straySearch) hasMark(pid int, mark []byte) bool {
	env, err := s.environ(pid)
	return err == nil && bytes.Contains(env, mark)
}

// cgroupOf returns the text of /proc/PID/cgroup, "" if the process is gone. Reading it takes no
// lock of the process.
func cgroupOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	return string(text)
}
