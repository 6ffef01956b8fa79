// Package overlay mounts layers as a root filesystem and does not know where they come from.
//
// For a pod with a user namespace the layers are taken through one id-mapped clone of their folder
// (Spec.UserNS), whose files belong to the namespace's ids: however many layers there are, nothing
// is copied and no owner is changed on disk. The writable layer is not mapped: what a process
// writes there has the ids that it has on the host. Overlayfs is mounted by the paths of the layers
// in a mount namespace of one thread, in which the clone lies over the folder; so the mount shows
// the same paths as any other.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/internal/guard"
)

// Spec is a mount to make.
type Spec struct {
	Layers   string   // folder that Lower is relative to
	Lower    []string // directories, topmost first
	Dir      string   // holds upper/ and work/ of the writable layer, created when missing; unused when ReadOnly
	Target   string   // mountpoint, created when missing
	Label    string   // SELinux context of all files as the mount shows them; "" leaves them theirs
	ReadOnly bool     // no writable layer: the files as they are, any number of times
	UserNS   *os.File // as whose ids those of the layers' files are taken; nil: as they are
}

// Mount mounts layers at s.Target, with a writable layer in s.Dir unless s.ReadOnly. The writable
// layer is volatile: nothing of it is synced, so it is good for one mount only, and mounting it
// again, or over a mounted target, is ErrFailedPrecondition.
func Mount(s Spec) (err error) {
	o := overlay{layers: s.Layers, lower: s.Lower, target: s.Target, label: s.Label}
	if s.UserNS != nil {
		if o.mapped, err = idMapped(o.layers, s.UserNS); err != nil {
			return err
		}
		defer o.mapped.Close()
	}
	if err := o.prepare(s); err != nil {
		return fault.Disk(err)
	}
	return fault.Disk(o.mount())
}

// overlay is one mount to make.
type overlay struct {
	layers string   // folder that lower is relative to
	lower  []string // topmost first
	upper  string   // "" for a read-only mount
	work   string
	target string
	label  string   // SELinux context of the mount, "" for none
	mapped *os.File // layers with other ids, a mount that is not attached; nil: they are taken as they are
}

// prepare creates the folders and refuses what must not be mounted a second time.
func (o *overlay) prepare(s Spec) error {
	if !filepath.IsAbs(s.Target) {
		return fmt.Errorf("target is not absolute: %w", errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(s.Target, 0o755); err != nil {
		return err
	}
	mounted, err := isMountpoint(s.Target)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("something is mounted there: %w", errdefs.ErrFailedPrecondition)
	}
	if s.ReadOnly {
		if len(o.lower) == 1 {
			o.lower = append(o.lower, "none") // without an upper layer overlayfs wants two lower ones
		}
		return nil
	}
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("folder of the writable layer is not absolute: %w", errdefs.ErrInvalidArgument)
	}
	o.upper, o.work = filepath.Join(s.Dir, "upper"), filepath.Join(s.Dir, "work")
	if _, err := os.Lstat(filepath.Join(o.work, "work", "incompat", "volatile")); err == nil {
		return fmt.Errorf("the writable layer %s was mounted before, and a volatile one can be mounted only once: %w", s.Dir, errdefs.ErrFailedPrecondition)
	}
	if err := os.MkdirAll(o.upper, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o700); err != nil {
		return err
	}
	return o.adoptRoot()
}

// adoptRoot gives the upper directory owner and mode of the topmost layer's root: overlayfs shows
// the upper one's.
func (o *overlay) adoptRoot() error {
	var st unix.Stat_t
	var err error
	if o.mapped != nil {
		err = unix.Fstatat(int(o.mapped.Fd()), o.lower[0], &st, unix.AT_SYMLINK_NOFOLLOW)
	} else {
		err = unix.Lstat(filepath.Join(o.layers, o.lower[0]), &st)
	}
	if err != nil {
		return err
	}
	if o.lower[0] == "empty" {
		st.Mode = 0o755
	}
	if err := os.Lchown(o.upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(o.upper, st.Mode&0o7777|RootMode)
}

// isMountpoint compares the device and the mount id with the parent's.
func isMountpoint(path string) (bool, error) {
	var here, above unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &here); err != nil {
		return false, err
	}
	if err := unix.Statx(unix.AT_FDCWD, filepath.Dir(path), 0, unix.STATX_MNT_ID, &above); err != nil {
		return false, err
	}
	return here.Mnt_id != above.Mnt_id, nil
}

func (o *overlay) mount() error {
	mnt, err := o.detached()
	if errors.Is(err, errOldKernel) && o.mapped == nil {
		return o.mountOld()
	}
	if err != nil {
		return err
	}
	defer mnt.Close()
	if err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, o.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount: %w", err)
	}
	return nil
}

// detached returns the mount, not attached to anything yet: closed, it is gone.
func (o *overlay) detached() (*os.File, error) {
	if o.mapped != nil {
		return o.overMapped()
	}
	return o.mountNew()
}

// errOldKernel: no fsopen(2), or an overlayfs without lowerdir+ (Linux before 6.7).
var errOldKernel = errors.New("kernel without overlayfs lowerdir+")

// asksOverlay says whether fsconfig(2) hands an option to overlayfs at once. Before Linux 6.5 it
// only collects them: lowerdir+ is taken, and the mount is refused when it is made, with an error
// that can mean anything.
var asksOverlay = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, "no-such-option", "x") != nil
})

// mountNew uses the mount API of file descriptors: no limit on the length of all options together.
func (o *overlay) mountNew() (*os.File, error) {
	if !asksOverlay() {
		return nil, errOldKernel
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == unix.ENOSYS {
		return nil, errOldKernel
	}
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	set := func(key, dir string) error {
		if len(dir) > 255 || strings.Contains(dir, `\`) {
			// fsconfig takes 255 bytes of a string, and overlayfs takes a backslash for an escape.
			// A descriptor's name is plain.
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			open, dir = append(open, fd), fmt.Sprintf("/proc/self/fd/%d", fd)
		}
		if err := unix.FsconfigSetString(fs, key, dir); err != nil {
			return fsError(fs, key+" "+dir, err)
		}
		return nil
	}
	if err := unix.FsconfigSetString(fs, "source", "overlay"); err != nil {
		return nil, fsError(fs, "source", err)
	}
	for i, l := range o.lower {
		if err := set("lowerdir+", filepath.Join(o.layers, l)); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				return nil, errOldKernel
			}
			return nil, err
		}
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if o.upper != "" {
		attr = 0
		if err := errors.Join(set("upperdir", o.upper), set("workdir", o.work)); err != nil {
			return nil, err
		}
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return nil, fsError(fs, "volatile", err)
		}
	}
	if o.label != "" {
		if err := unix.FsconfigSetString(fs, "context", o.label); err != nil {
			return nil, fsError(fs, "context "+o.label, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fsError(fs, "create", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(mnt), o.target), nil
}

// fsError adds what the kernel has to say; it writes it into the context's log, not into errno.
func fsError(fs int, what string, err error) error {
	b := make([]byte, 1024)
	var said []string
	for len(said) < 8 {
		n, rerr := unix.Read(fs, b)
		if rerr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(b[:n])))
	}
	if len(said) == 0 {
		return fmt.Errorf("overlay, %s: %w", what, err)
	}
	return fmt.Errorf("overlay, %s: %w (%s)", what, err, strings.Join(said, "; "))
}

// mountOld uses mount(2), whose options have to fit into one page: the lower directories are named
// relative to layers/, by a thread with a working directory of its own.
func (o *overlay) mountOld() error { return apart(o.mountHere) }

// mountHere changes the working directory of the calling thread.
func (o *overlay) mountHere() error {
	opts := "lowerdir=" + strings.Join(o.lower, ":")
	flags := uintptr(unix.MS_RDONLY)
	if o.upper != "" {
		flags = 0
		opts += ",upperdir=" + escape(o.upper) + ",workdir=" + escape(o.work) + ",volatile"
	}
	if o.label != "" {
		opts += fmt.Sprintf(",context=%q", o.label) // in quotes, for the comma between categories
	}
	if len(opts) >= os.Getpagesize() {
		return fmt.Errorf("%d layers do not fit into the options of mount(2) on this kernel: %w", len(o.lower), errdefs.ErrFailedPrecondition)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("a working directory of its own: %w", err)
	}
	if err := unix.Chdir(o.layers); err != nil {
		return err
	}
	if err := unix.Mount("overlay", o.target, "overlay", flags, opts); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// apart runs act on a thread that ends with it, so that act may change what threads share. The
// process's first thread does not end: it waits here while another one works.
func apart(act func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, except for the first: that ends the thread with the goroutine
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- apart(act)
			return
		}
		result <- guard.Call(context.Background(), "work on a thread of its own", act)
	}()
	return <-result
}

// escape keeps separators out of a mount option.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`).Replace(path)
}

const (
	unmountTries = 10
	unmountPause = 20 * time.Millisecond
)

// Unmount unmounts whatever is mounted at target; nothing mounted, or no target, is no error. A
// busy mount is tried for a short time and then detached: it goes away when its last user does.
func Unmount(ctx context.Context, target string) error {
	for try := 1; ; {
		flags := unix.UMOUNT_NOFOLLOW
		if try >= unmountTries || ctx.Err() != nil {
			flags |= unix.MNT_DETACH
		}
		switch err := unix.Unmount(target, flags); err {
		case nil: // there may be another below
		case unix.EINVAL, unix.ENOENT, unix.ENOTDIR:
			return nil
		case unix.EBUSY:
			if flags&unix.MNT_DETACH != 0 {
				return err
			}
			try++
			pause(ctx, unmountPause) // an unmount is not given up half-way
		case unix.EINTR:
		default:
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
