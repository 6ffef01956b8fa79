package imageservice

import (
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Some layers put a file into a directory that their tar does not name: "tmp/x" without "tmp/". We have to make the directory up, and
// overlayfs shows the metadata of the topmost one, so a made-up /tmp would lose the sticky bit that the base image gave it. The metadata
// has to come from the layers below, which are not the same in every image: such a layer is unpacked again with these fixes applied and
// kept under a key of its own. Changing the shared one would let one image decide over directories of another.

// fix is the metadata that one made-up directory should have.
type fix struct {
	Name string `json:"name"`
	Mode uint32 `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
}

// fixesKey identifies a set of fixes, "" for none.
func fixesKey(fixes []fix) string {
	if len(fixes) == 0 {
		return ""
	}
	b, _ := json.Marshal(fixes)
	return sum(b)
}

// fixesFor looks for the directories that a layer made up in the layers below it, given topmost first.
func (c *Images) fixesFor(implied []string, below []*layer) ([]fix, error) {
	var fixes []fix
	for _, name := range implied {
		for _, l := range below {
			st, seen, err := lookLayer(filepath.Join(c.layerDir(l.Dir), "fs"), name)
			if err != nil {
				return nil, fmt.Errorf("look for %q in layer %s: %w", name, l.Dir, err)
			}
			if seen && st != nil {
				f := fix{Name: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
				if f != (fix{Name: name, Mode: 0o755}) {
					fixes = append(fixes, f)
				}
			}
			if seen || l.Opaque {
				break
			}
		}
	}
	slices.SortFunc(fixes, func(a, b fix) int { return strings.Compare(a.Name, b.Name) })
	return fixes, nil
}

// lookLayer looks for a directory in one layer. seen means that this layer decides: it has the directory (st), or something in it hides
// the name from further down (no st).
func lookLayer(fs, name string) (st *unix.Stat_t, seen bool, err error) {
	root, err := unix.Open(fs, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	defer unix.Close(root)
	fd, err := openIn(root, name, unix.O_RDONLY|unix.O_DIRECTORY, insideNoLinks)
	switch err {
	case nil:
		defer unix.Close(fd)
		st = &unix.Stat_t{}
		return st, true, unix.Fstat(fd, st)
	case unix.ENOTDIR, unix.ELOOP:
		return nil, true, nil // a whiteout, a file or a link, here or in place of a parent
	case unix.ENOENT:
	default:
		return nil, false, err
	}
	for up := path.Dir(name); up != "."; up = path.Dir(up) {
		fd, err := openIn(root, up, unix.O_RDONLY|unix.O_DIRECTORY, insideNoLinks)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		opaque := isOpaque(fd)
		unix.Close(fd)
		if opaque {
			return nil, true, nil
		}
	}
	return nil, false, nil
}

const insideNoLinks = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS

func isOpaque(fd int) bool {
	b := make([]byte, 2)
	n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", b)
	return err == nil && n == 1 && b[0] == 'y'
}

// applyFixes gives made-up directories their metadata.
func applyFixes(root int, fixes []fix) error {
	for _, f := range fixes {
		fd, err := openIn(root, f.Name, unix.O_RDONLY|unix.O_DIRECTORY, insideNoLinks)
		if err != nil {
			return fmt.Errorf("give %q its metadata: %w", f.Name, err)
		}
		err = unix.Fchown(fd, int(f.UID), int(f.GID))
		if err == nil {
			err = unix.Fchmod(fd, f.Mode)
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("give %q its metadata: %w", f.Name, diskError(err))
		}
	}
	return nil
}
