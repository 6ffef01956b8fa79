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
	ownerFile = "root-id" // in root: its random ID; in state: the ID of the root it belongs to
)

// lockFolders locks the root and the state folder of c, so that no other daemon uses them until
// release is called. It empties a state folder from before a reboot, and returns an error if the
// state folder belongs to another root. It replaces c.Root and c.State by their real paths.
func lockFolders(c *config.Config) (release func(), err error) {
	root, err := lockFolder("root", &c.Root, 0o700)
	if err != nil {
		return nil, err
	}
	// The state folder is searchable by others: the root user of a pod's user namespace passes
	// through it to the pod's root filesystem. The files and folders in it have restrictive modes
	// of their own.
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

// lockFolder creates the folder if it is missing, sets its mode and locks it. It sets *path to the
// folder's real path. If another daemon holds the lock, the error contains its pid.
func lockFolder(kind string, path *string, mode os.FileMode) (*os.File, error) {
	if err := os.MkdirAll(*path, mode); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	dir, err := filepath.EvalSymlinks(*path)
	if err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	*path = dir
	if err := os.Chmod(dir, mode); err != nil { // an installer may have set a wider mode
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
		return nil, fmt.Errorf("%s folder %s is in use by the cribox process with pid %s",
			kind, dir, strings.TrimSpace(string(pid)))
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, fmt.Errorf("%s folder: %w", kind, err)
	}
	return f, nil
}

// lockSoon locks f, and retries for half a second. A child that a killed daemon had just forked
// holds the lock's descriptor until it calls exec.
func lockSoon(f *os.File) (err error) {
	for range 50 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// emptyAfterReboot empties a state folder that was last used before a reboot, because none of its
// processes run any more. On a tmpfs the reboot has already done that. A folder without the mark of
// a boot is not emptied.
func emptyAfterReboot(dir string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	seen, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state folder: cannot tell whether it is from before the last reboot: %w", err)
	}
	if err == nil && len(seen) == len(boot) && string(seen) != string(boot) {
		if err := empty(dir); err != nil {
			return fmt.Errorf("state folder from before the last reboot: %w", err)
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

// empty removes everything in dir except its lock file. It returns an error if anything is mounted
// below dir, because that would be deleted too.
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

// claim records in the state folder which root it belongs to. It returns an error if the state
// folder has tasks of another root: if the daemon were started with the wrong root, or before the
// right one was mounted, it would treat all running containers as orphans.
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
		return fmt.Errorf("state folder %s belongs to a root folder other than %s; "+
			"cannot tell whether anything in it still runs: %w",
			state, root, readErr)
	}
	if err == nil && len(tasks) > 0 {
		return fmt.Errorf("state folder %s holds %d tasks of a root folder other than %s: is this the right root folder, "+
			"and is it mounted?",
			state, len(tasks), root)
	}
	if err := writeWhole(filepath.Join(state, ownerFile), id); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

// writeWhole replaces a file atomically: after a crash it has either its old or its new content.
func writeWhole(path string, b []byte) error {
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
