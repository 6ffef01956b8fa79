package shim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// processLabel returns the SELinux label of a task's processes, as its config.json has it; "" if
// there is none.
func processLabel(config string) (string, error) {
	spec, err := os.ReadFile(config)
	if err != nil || !bytes.Contains(spec, []byte(`"selinuxLabel"`)) {
		return "", err
	}
	var s struct {
		Process struct {
			SelinuxLabel string `json:"selinuxLabel"`
		} `json:"process"`
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return "", fmt.Errorf("%s: %w", config, err)
	}
	return s.Process.SelinuxLabel, nil
}

// labelledSocket creates a unix datagram socket that processes with the SELinux label may inherit.
// The kernel replaces one with our own label by /dev/null when they start. A policy that does not
// let us create it gets one with our own label all the same.
func labelledSocket(label string) (int, error) {
	if label == "" {
		return datagramSocket()
	}
	made := make(chan struct{})
	var fd int
	var err error
	go func() {
		defer close(made)
		// The label belongs to the thread. It ends with this goroutine, which never unlocks it.
		runtime.LockOSThread()
		if writeSocketLabel(label) == nil {
			if fd, err = datagramSocket(); err == nil {
				return
			}
		}
		_ = writeSocketLabel("")
		fd, err = datagramSocket()
	}()
	<-made
	return fd, err
}

func datagramSocket() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

func writeSocketLabel(label string) error {
	f, err := os.OpenFile("/proc/thread-self/attr/sockcreate", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(label)
	return err
}
