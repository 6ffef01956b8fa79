// Package overlay mounts layers as a root filesystem. It does not know where they come from.
//
// For a pod with a user namespace, the folder of the layers is cloned once as an id-mapped mount
// (Spec.UserNS), in which files belong to IDs of the namespace. Nothing is copied, and no owner is
// changed on disk, whatever the number of layers. The writable layer is not mapped: its files have
// the IDs that the writing process has on the host. The overlay is mounted by a thread in its own
// mount namespace, in which the clone covers the folder; so its options have the same paths as
// those of any other mount.
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

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/internal/guard"
)

// Spec describes a mount.
type Spec struct {
	Layers   string   // the folder that Lower is relative to
	Lower    []string // directories, topmost first
	Dir      string   // contains upper/ and work/ of the writable layer, created if missing; unused if ReadOnly
	Target   string   // mountpoint, created if missing
	Label    string   // SELinux context of all files in the mount; "" keeps their own
	ReadOnly bool     // no writable layer; the same layers may be mounted any number of times
	UserNS   *os.File // maps the owner IDs of the layers' files; nil: IDs are not mapped
}

// Mount mounts layers at s.Target, with a writable layer in s.Dir unless s.ReadOnly. The writable
// layer is volatile: the kernel never syncs it, so it can be mounted only once. Mount returns
// ErrFailedPrecondition if it was mounted before, or if something is mounted at the target.
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

// overlay is the state of one mount operation.
type overlay struct {
	layers string   // the folder that lower is relative to
	lower  []string // topmost first
	upper  string   // "" for a read-only mount
	work   string
	target string
	label  string   // SELinux context of the mount, "" for none
	mapped *os.File // detached id-mapped mount of layers; nil: IDs are not mapped
}

// prepare creates the folders, and returns an error for a target or writable layer that must not be
// mounted again.
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
		return fmt.Errorf("something is already mounted there: %w", errdefs.ErrFailedPrecondition)
	}
	if s.ReadOnly {
		if len(o.lower) == 1 {
			o.lower = append(o.lower, "none") // without an upper layer, overlayfs requires two lower ones
		}
		return nil
	}
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("folder of the writable layer is not absolute: %w", errdefs.ErrInvalidArgument)
	}
	o.upper, o.work = filepath.Join(s.Dir, "upper"), filepath.Join(s.Dir, "work")
	if _, err := os.Lstat(filepath.Join(o.work, "work", "incompat", "volatile")); err == nil {
		return fmt.Errorf("the writable layer %s was mounted before, and a volatile layer can be mounted only once: %w",
			s.Dir, errdefs.ErrFailedPrecondition)
	}
	if err := os.MkdirAll(o.upper, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o700); err != nil {
		return err
	}
	return o.adoptRoot()
}

// adoptRoot copies owner and mode of the topmost layer's root to the upper directory, because
// overlayfs shows those of the upper one.
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

// isMountpoint compares the mount ID with that of the parent directory.
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

// detached returns the mount before it is attached; closing it unmounts it.
func (o *overlay) detached() (*os.File, error) {
	if o.mapped != nil {
		return o.overMapped()
	}
	return o.mountNew()
}

// errOldKernel means that the kernel has no fsopen(2), or an overlayfs without lowerdir+ (before
// Linux 6.7).
var errOldKernel = errors.New("kernel without overlayfs lowerdir+")

// asksOverlay reports whether fsconfig(2) passes each option to overlayfs at once. Before Linux 6.5
// the kernel only collects them: it accepts lowerdir+, and later refuses the mount with an
// ambiguous error.
var asksOverlay = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, "no-such-option", "x") != nil
})

// mountNew uses the file descriptor based mount API, which does not limit the total length of
// options.
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
	c := &fsContext{fd: fs}
	defer c.close()
	if err := o.configure(c); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fsError(fs, "create", err)
	}
	attr := 0
	if o.upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(mnt), o.target), nil
}

// configure sets all options of the filesystem.
func (o *overlay) configure(c *fsContext) error {
	if err := c.set("source", "overlay"); err != nil {
		return err
	}
	for i, l := range o.lower {
		if err := c.setDir("lowerdir+", filepath.Join(o.layers, l)); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				return errOldKernel
			}
			return err
		}
	}
	if o.upper != "" {
		if err := errors.Join(c.setDir("upperdir", o.upper), c.setDir("workdir", o.work)); err != nil {
			return err
		}
		if err := unix.FsconfigSetFlag(c.fd, "volatile"); err != nil {
			return fsError(c.fd, "volatile", err)
		}
	}
	if o.label != "" {
		return c.set("context", o.label)
	}
	return nil
}

// fsContext is a filesystem that is being configured, see fsopen(2).
type fsContext struct {
	fd   int
	dirs []int // descriptors that options refer to
}

func (c *fsContext) close() {
	for _, fd := range append(c.dirs, c.fd) {
		unix.Close(fd)
	}
}

func (c *fsContext) set(key, value string) error {
	if err := unix.FsconfigSetString(c.fd, key, value); err != nil {
		return fsError(c.fd, key+" "+value, err)
	}
	return nil
}

// setDir sets an option to a directory.
func (c *fsContext) setDir(key, dir string) error {
	if len(dir) > 255 || strings.Contains(dir, `\`) {
		// fsconfig accepts strings of up to 255 bytes, and overlayfs treats a backslash as an
		// escape. The path of a descriptor has neither problem.
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.dirs, dir = append(c.dirs, fd), fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	return c.set(key, dir)
}

// fsError adds the kernel's messages, which it writes to the log of the filesystem context.
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

// mountOld uses mount(2), whose options must fit into one page. So a thread with its own working
// directory names the lower directories relative to layers/.
func (o *overlay) mountOld() error { return apart(o.mountHere) }

// mountHere mounts with mount(2). It changes the working directory of the calling thread.
func (o *overlay) mountHere() error {
	opts := "lowerdir=" + strings.Join(o.lower, ":")
	flags := uintptr(unix.MS_RDONLY)
	if o.upper != "" {
		flags = 0
		opts += ",upperdir=" + escape(o.upper) + ",workdir=" + escape(o.work) + ",volatile"
	}
	if o.label != "" {
		opts += fmt.Sprintf(",context=%q", o.label) // quoted, because there is a comma between categories
	}
	if len(opts) >= os.Getpagesize() {
		return fmt.Errorf("%d layers do not fit into the options of mount(2) on this kernel: %w",
			len(o.lower), errdefs.ErrFailedPrecondition)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Chdir(o.layers); err != nil {
		return err
	}
	if err := unix.Mount("overlay", o.target, "overlay", flags, opts); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// apart runs act on a thread that ends afterwards, so that act may change state that threads
// normally share. The first thread of the process cannot end, so there another thread runs act.
func apart(act func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // a goroutine that stays locked ends its thread; only the first thread is unlocked
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- apart(act)
			return
		}
		result <- guard.Call(context.Background(), "work on a thread of its own", act)
	}()
	return <-result
}

// escape escapes separators in a mount option.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`).Replace(path)
}
