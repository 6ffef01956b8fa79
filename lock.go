package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// lockRoot makes this process the only daemon of a root folder until it ends. The error of the second one names the first.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("root folder: %w", err)
	}
	if err := os.Chmod(root, 0o700); err != nil { // one that an installer made wider
		return nil, fmt.Errorf("root folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, "cribox.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("root folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		pid, readErr := io.ReadAll(io.LimitReader(f, 32))
		if readErr != nil || len(pid) == 0 {
			return nil, fmt.Errorf("root folder %s is in use by another process", root)
		}
		return nil, fmt.Errorf("root folder %s is in use by the cribox with pid %s", root, strings.TrimSpace(string(pid)))
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("root folder: %w", err)
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, fmt.Errorf("root folder: %w", err)
	}
	return f, nil
}
