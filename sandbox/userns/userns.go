package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// IDs is a range of ids: those from 0 on inside, which are those from First on outside.
type IDs struct{ First, Length uint32 }

func (r IDs) mapping() []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(r.First), Size: int(r.Length)}}
}

// Set is a user namespace and, when it was asked for, a network namespace that belongs to it. They
// live as long as somebody has them open, or they are pinned.
type Set struct{ User, Net *os.File }

// Close gives up what is open of them.
func (s Set) Close() error {
	var errs []error
	for _, f := range []*os.File{s.User, s.Net} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// New makes a user namespace with these ids, and with net a network namespace that belongs to it:
// only whoever rules the one can rule the other. program is an executable that waits to be killed;
// it is gone when New returns, and it dies with this process.
func New(program []byte, uids, gids IDs, net bool) (s Set, err error) {
	file, err := inMemory(program)
	if err != nil {
		return Set{}, err
	}
	defer file.Close()
	// The kernel kills the helper when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The program is the child's descriptor 0: of all other numbers, what starts it may make
	// something else before it executes.
	helper := exec.Cmd{Path: "/proc/self/fd/0", Stdin: file, Args: []string{"cribox-userns"}, Dir: "/", Env: []string{},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, UidMappings: uids.mapping(), GidMappings: gids.mapping(), Pdeathsig: syscall.SIGKILL,
			GidMappingsEnableSetgroups: true, // else no process in the namespace could ever choose its groups
		}}
	if net {
		helper.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if err := helper.Start(); err != nil {
		return Set{}, fmt.Errorf("start a process in a new user namespace: %w", err)
	}
	defer func() {
		_ = helper.Process.Kill() // fails only when it has ended, which the error of open tells
		_ = helper.Wait()
		if err != nil {
			err = errors.Join(err, s.Close())
			s = Set{}
		}
	}()
	if s.User, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", helper.Process.Pid)); err != nil || !net {
		return s, err
	}
	s.Net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", helper.Process.Pid))
	return s, err
}

// inMemory makes a program a file that can be executed on every machine: /run, the best place for a
// state folder, is often mounted noexec.
func inMemory(program []byte) (*os.File, error) {
	// A child that inherits the writable descriptor, if only until it executes something, would
	// make the file busy.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.MemfdCreate("cribox-userns", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3, where every such file can be executed
		fd, err = unix.MemfdCreate("cribox-userns", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make a program in memory: %w", err)
	}
	writable := os.NewFile(uintptr(fd), "cribox-userns")
	defer writable.Close()
	if _, err := writable.Write(program); err != nil {
		return nil, fmt.Errorf("make a program in memory: %w", err)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// CanMap tells whether what lies at path can be mounted with the ids of a user namespace: its file
// system may not be able to, which is ErrFailedPrecondition. Nothing becomes visible.
func CanMap(path string, ns *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount of %s: %w", path, err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("the file system of %s does not support id-mapped mounts: %w: %w",
			path, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// CanMapTmpfs tells whether a tmpfs can be mounted with the ids of a user namespace, which is
// ErrFailedPrecondition before Linux 6.3. Nothing becomes visible.
func CanMapTmpfs(ns *os.File) error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a tmpfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("make a tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a tmpfs: %w", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("this kernel has no tmpfs with mapped ids (Linux 6.3 has), and a pod of Kubernetes "+
			"has one for the token of its service account: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Pin gives a namespace a name that outlives this process. What a crash left under that name is
// replaced.
func Pin(ns *os.File, path string) error {
	if err := Unpin(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("pin namespace to %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// Unpin is the opposite. A path that is not there, or is an ordinary file, is fine.
func Unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpin namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}
