package cgroup

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

// A container with a writable cgroup file system can create any number of cgroups in its own,
// nested to any depth. They are walked with a fixed number of descriptors, never by their paths.

// walkLimit limits the time of a walk; the next walk continues with the rest.
const walkLimit = 5 * time.Second

var errWalkLimit = errors.New("too many cgroups to walk")

// eachCgroup calls act for the cgroup dir and each one below it. at is a folder, and file returns
// the name, relative to at, of a file in the cgroup.
func eachCgroup(dir string, act func(at int, file func(string) string)) {
	// Errors are ignored: what cannot be walked is gone, or is left to the next walk.
	_ = walkCgroup(dir, func(root int) tree.Visitor {
		act(root, func(name string) string { return name })
		return tree.Visitor{Entry: func(at int, cgroup string, _ *unix.Stat_t) error {
			act(at, func(name string) string { return cgroup + "/" + name })
			return nil
		}}
	})
}

// walkCgroup walks the cgroups below dir. It returns errWalkLimit after walkLimit.
func walkCgroup(dir string, visitor func(root int) tree.Visitor) error {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	v, end := visitor(root), time.Now().Add(walkLimit)
	v.Folders = true
	entry := v.Entry
	v.Entry = func(at int, name string, st *unix.Stat_t) error {
		if time.Now().After(end) {
			return errWalkLimit
		}
		if entry == nil {
			return nil
		}
		return entry(at, name, st)
	}
	return tree.Walk(root, v)
}

// Procs lists the processes in dir and below; in v1 that includes zombies.
func Procs(dir string) []int {
	var pids []int
	eachCgroup(dir, func(at int, file func(string) string) {
		fd, err := unix.Openat(at, file("cgroup.procs"), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "cgroup.procs")
		defer f.Close()
		raw, _ := io.ReadAll(f)
		for _, w := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(w); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	})
	return pids
}

// AllProcs lists the processes in dirs and below, without duplicates.
func AllProcs(dirs []string) []int {
	var pids []int
	for _, dir := range dirs {
		pids = append(pids, Procs(dir)...)
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// thawBelow thaws the cgroups (v1) in dir and below: thawing dir alone does not thaw those below
// that were frozen on their own.
func thawBelow(dir string) {
	eachCgroup(dir, func(at int, file func(string) string) {
		fd, err := unix.Openat(at, file(freezerV1), unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			_, _ = unix.Write(fd, []byte("THAWED"))
			unix.Close(fd)
		}
	})
}

// RemoveEmpty removes a cgroup and those below it, innermost first. It returns nil if dir is gone.
func RemoveEmpty(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	// Errors are ignored: the Rmdir below shows whether something is left.
	_ = walkCgroup(dir, func(int) tree.Visitor {
		var way []string
		return tree.Visitor{
			Enter: func(name string) error { way = append(way, name); return nil },
			Leave: func(left int) error {
				name := way[len(way)-1]
				way = way[:len(way)-1]
				_ = unix.Unlinkat(left, "../"+name, unix.AT_REMOVEDIR)
				return nil
			},
		}
	})
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
