package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/cribox/cribox/config"
)

const (
	lockFile  = "cribox.lock"
	bootFile  = "boot-id"
	ownerFile = "root-id" // in root: its name, made once; in state: the name of the root it belongs to
)

// lockFolders makes this process the only daemon of its root and of its state folder until release
// is called, and sees to it that the two belong together. Both are known by their real paths from
// here on.
func lockFolders(c *config.Config) (release func(), err error) {
	root, err := lockFolder("root", &c.Root, 0o700)
	if err != nil {
		return nil, err
	}
	// Root of a pod's user namespace passes through it to the pod's root filesystem. What is in it
	// is closed by itself.
	state, err := lockFolder("state", &c.State, 0o711)
	if err != nil {
		root.Close()
		return nil, err
	}
	release = func() { state.Close(); root.Close() }
	if err := errors.Join(emptyAfterReboot(c.State), claim(c.Root, c.State)); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// lockFolder locks one folder, which it makes and closes to others as far as mode says. The error
// of the second daemon names the first one's pid.
func lockFolder(kind string, path *string, mode os.FileMode) (*os.File, error) {
	if err := os.MkdirAll(*path, mode); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	dir, err := filepath.EvalSymlinks(*path)
	if err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	*path = dir
	if err := os.Chmod(dir, mode); err != nil { // one that an installer made wider
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	if err := lockSoon(f); err != nil {
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

// lockSoon locks f. What a killed daemon was just starting has its descriptors until it executes
// something, so it is tried for a moment.
func lockSoon(f *os.File) (err error) {
	for range 50 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// emptyAfterReboot empties a state folder from before a reboot: nothing that it speaks of runs any
// more. Where it lies on a tmpfs the reboot did that. A folder without a readable mark is left as
// it is.
func emptyAfterReboot(dir string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	seen, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state folder: whether it is from before the reboot cannot be told: %w", err)
	}
	if err == nil && len(seen) == len(boot) && string(seen) != string(boot) {
		if err := empty(dir); err != nil {
			return fmt.Errorf("state folder from before the reboot: %w", err)
		}
	}
	if string(seen) == string(boot) {
		return nil
	}
	if err := writeWhole(filepath.Join(dir, bootFile), boot); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

// empty removes everything in dir but its lock. It refuses when anything is mounted below: that
// would be emptied too.
func empty(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Mountpoint != dir {
			return fmt.Errorf("%s is mounted", m.Mountpoint)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// claim writes into the state folder which root it belongs to, and refuses a state folder with
// tasks of another root: started with the wrong root, or before the right one was mounted, cribox
// would take everything that runs for orphans.
func claim(root, state string) error {
	id, err := os.ReadFile(filepath.Join(root, ownerFile))
	if errors.Is(err, os.ErrNotExist) {
		id = []byte(rand.Text())
		err = writeWhole(filepath.Join(root, ownerFile), id)
	}
	if err != nil {
		return fmt.Errorf("root folder: %w", err)
	}
	owner, err := os.ReadFile(filepath.Join(state, ownerFile))
	if err == nil && string(owner) == string(id) {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state folder: %w", err)
	}
	tasks, readErr := os.ReadDir(filepath.Join(state, "shim"))
	if err == nil && readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
		return fmt.Errorf("state folder %s belongs to another root than %s, and whether anything of it runs cannot be told: %w",
			state, root, readErr)
	}
	if err == nil && len(tasks) > 0 {
		return fmt.Errorf("state folder %s holds %d tasks of another root than %s: is that the right one, and is it mounted?",
			state, len(tasks), root)
	}
	if err := writeWhole(filepath.Join(state, ownerFile), id); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

// writeWhole replaces a file: a crash leaves the old bytes or the new ones.
func writeWhole(path string, b []byte) error {
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
