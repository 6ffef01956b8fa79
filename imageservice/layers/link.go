package layers

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/overlay"
)

// Some layers put a file into a directory that has no entry in their tar: "tmp/x" without "tmp/".
// Such a directory is implied. It must be created, and overlayfs shows the metadata of the topmost
// directory, so /tmp would lose the sticky bit of the base image. The metadata must be copied from
// the layers below, which differ between images. So the layer is unpacked again with fixes for this
// metadata, under a key of its own. Changing the shared layer would let one image change
// directories of another.

// Fix is the metadata for one implied directory.
type Fix struct {
	Name string `json:"name"`
	Mode uint32 `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
}

// FixesKey returns a string that identifies a set of fixes, "" for none.
func FixesKey(fixes []Fix) string {
	if len(fixes) == 0 {
		return ""
	}
	b, _ := json.Marshal(fixes)
	return digest.FromBytes(b).Encoded()
}

// FixesOf returns the fixes that a layer needs on top of others, which are given topmost first.
func (u *Unpacker) FixesOf(ctx context.Context, l *Layer, below []*Layer) ([]Fix, error) {
	implied, err := u.store.implied(l.Dir)
	if err != nil {
		return nil, err
	}
	return u.fixesFor(ctx, implied, below)
}

// fixesFor looks up a layer's implied directories (sorted, so that parents come first) in the
// layers below, which are given topmost first. It returns ErrResourceExhausted after too many
// lookups for one image.
func (u *Unpacker) fixesFor(ctx context.Context, implied []string, below []*Layer) ([]Fix, error) {
	var fixes []Fix
	for _, l := range below {
		if len(implied) == 0 {
			break
		}
		found, rest, err := u.lookLayer(ctx, l, implied)
		if err != nil {
			return nil, fmt.Errorf("look for directories in layer %s: %w", l.Dir, err)
		}
		for _, f := range found {
			if f != (Fix{Name: f.Name, Mode: 0o755}) {
				fixes = append(fixes, f)
			}
		}
		if implied = rest; l.Opaque {
			break
		}
	}
	slices.SortFunc(fixes, func(a, b Fix) int { return strings.Compare(a.Name, b.Name) })
	return fixes, nil
}

// lookLayer looks up directories in one layer. found are those that the layer has. rest are those
// about which the layer says nothing. A name in neither is hidden by this layer.
func (u *Unpacker) lookLayer(ctx context.Context, l *Layer, names []string) (found []Fix, rest []string, err error) {
	root, err := unix.Open(u.store.Files(l.Dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(root)
	v := &view{root: root, dirs: map[string]seen{".": {state: present}}, look: func() error { return u.look(ctx) }}
	for _, name := range names {
		if err := u.look(ctx); err != nil {
			return nil, nil, err
		}
		s, err := v.at(name)
		if err != nil {
			return nil, nil, err
		}
		switch s.state {
		case present:
			found = append(found, Fix{Name: name, Mode: s.mode & 0o7777, UID: s.uid, GID: s.gid})
		case absent:
			rest = append(rest, name)
		}
	}
	return found, rest, nil
}

// look counts one lookup. It returns an error after too many, or when ctx has ended.
func (u *Unpacker) look(ctx context.Context) error {
	if u.looks++; u.looks > maxLooks {
		return fault.Refuse(errdefs.ErrResourceExhausted,
			"too many directories that the layers do not list, over too many layers")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// view caches the lookups in one layer.
type view struct {
	root int
	dirs map[string]seen
	look func() error
}

type seen struct {
	state
	opaque   bool // this directory or a parent is opaque, not counting the root
	mode     uint32
	uid, gid uint32
}

type state int

const (
	absent  state = iota // the layer says nothing
	present              // the layer has this directory
	hidden               // a whiteout, file or link at the name or a parent hides lower layers
)

// at looks up a name below the root. It looks into a parent only if the layer has it.
func (v *view) at(name string) (seen, error) {
	if s, ok := v.dirs[name]; ok {
		return s, nil
	}
	s, err := v.at(path.Dir(name))
	if err != nil {
		return s, err
	}
	if s.state == present {
		if s, err = v.open(name, s.opaque); err != nil {
			return s, err
		}
	}
	v.dirs[name] = s
	return s, nil
}

func (v *view) open(name string, opaque bool) (seen, error) {
	if err := v.look(); err != nil {
		return seen{}, err
	}
	fd, err := openIn(v.root, name, unix.O_RDONLY|unix.O_DIRECTORY, insideNoLinks)
	switch err {
	case nil:
		defer unix.Close(fd)
	case unix.ENOTDIR, unix.ELOOP:
		return seen{state: hidden}, nil
	case unix.ENOENT:
		if opaque {
			return seen{state: hidden}, nil
		}
		return seen{}, nil
	default:
		return seen{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return seen{}, err
	}
	return seen{state: present, opaque: opaque || overlay.IsOpaque(fd), mode: st.Mode, uid: st.Uid, gid: st.Gid}, nil
}

const insideNoLinks = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS

// applyFixes sets the metadata of implied directories.
func applyFixes(root int, fixes []Fix) error {
	for _, f := range fixes {
		fd, err := openIn(root, f.Name, unix.O_RDONLY|unix.O_DIRECTORY, insideNoLinks)
		if err != nil {
			return fmt.Errorf("set the metadata of %q: %w", f.Name, err)
		}
		err = unix.Fchown(fd, int(f.UID), int(f.GID))
		if err == nil {
			err = unix.Fchmod(fd, f.Mode)
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set the metadata of %q: %w", f.Name, fault.Disk(err))
		}
	}
	return nil
}
