package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// lockFolders makes this process the only daemon of its root and of its state folder until both files are closed.
func lockFolders(c Config) (release func(), err error) {
	root, err := lockFolder("root", c.Root)
	if err != nil {
		return nil, err
	}
	if err := prepareState(c.State); err != nil {
		root.Close()
		return nil, err
	}
	state, err := lockFolder("state", c.State)
	if err != nil {
		root.Close()
		return nil, err
	}
	return func() { state.Close(); root.Close() }, nil
}

// lockFolder locks one folder, which it makes and closes to others. The error of the second daemon names the first one's pid.
func lockFolder(kind, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // one that an installer made wider
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "cribox.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		pid, readErr := io.ReadAll(io.LimitReader(f, 32))
		if readErr != nil || len(pid) == 0 {
			return nil, fmt.Errorf("%s folder %s is in use by another process", kind, dir)
		}
		return nil, fmt.Errorf("%s folder %s is in use by the cribox with pid %s", kind, dir, strings.TrimSpace(string(pid)))
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	return f, nil
}
