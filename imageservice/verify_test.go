package imageservice

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/imagetest"
)

// verified verifies all images, and returns the result for the one with the ID.
func verified(t *testing.T, c *Images, id string, repair bool) Verified {
	t.Helper()
	v, err := c.Verify(nil, repair, nil)
	imagetest.Must(t, err)
	var found []Verified
	imagetest.Must(t, v.Run(t.Context(), func(one Verified) { found = append(found, one) }))
	for _, one := range found {
		if one.Image.ID == id {
			return one
		}
	}
	t.Fatalf("image %s was not verified: %+v", id, found)
	return Verified{}
}

// folderOf returns the folder with the files of a layer of an image, the lowest is 0.
func folderOf(t *testing.T, c *Images, id string, index int) string {
	t.Helper()
	r, err := c.catalog.Record(id)
	imagetest.Must(t, err)
	return c.layers.Files(r.Layers[index].Dir)
}

// TestVerifyFindsDamage damages one thing at a time of an unpacked layer. Each is found by its name,
// and a repair leaves an image without damage.
func TestVerifyFindsDamage(t *testing.T) {
	r := imagetest.NewRegistry(t)
	base := imagetest.Tar(t, imagetest.Dir("etc", 0o755), imagetest.File("etc/a"), "from base", imagetest.Hard("etc/b", "etc/a"),
		imagetest.Link("etc/l", "a"), imagetest.Dir("tmp", 0o1777), imagetest.File("etc/twice"), "1", imagetest.File("etc/twice"), "22")
	upper := imagetest.Tar(t, imagetest.File("etc/.wh.a"), imagetest.File("tmp/x"), "in an implied folder", imagetest.File("new/.wh..wh..opq"))
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(base), imagetest.Zstd(upper)}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	if one := verified(t, c, id, false); len(one.Damages) > 0 || one.Err != nil {
		t.Fatalf("an undamaged image: %+v", one)
	}
	for what, damage := range map[string]func(base, upper string) error{
		`"/etc/twice" has other content`: func(base, _ string) error {
			var st unix.Stat_t
			path := base + "/etc/twice"
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte("23"), 0); err != nil {
				return err
			}
			return unix.UtimesNano(path, []unix.Timespec{st.Atim, st.Mtim}) // as a failing disk does it
		},
		`"/etc/a" has another size`:                   func(base, _ string) error { return os.Truncate(base+"/etc/a", 3) },
		`"/etc/b" is missing`:                         func(base, _ string) error { return os.Remove(base + "/etc/b") },
		`"/etc" is missing`:                           func(base, _ string) error { return os.RemoveAll(base + "/etc") },
		`"/etc/more" is not in the image`:             func(base, _ string) error { return os.WriteFile(base+"/etc/more", nil, 0o600) },
		`"/etc/twice" has another mode`:               func(base, _ string) error { return os.Chmod(base+"/etc/twice", 0o4755) },
		`"/etc/twice" has another owner`:              func(base, _ string) error { return os.Lchown(base+"/etc/twice", 7, 0) },
		`"/etc/l" is missing`:                         func(base, _ string) error { return os.Remove(base + "/etc/l") },
		`"/etc/a" has another type`:                   func(_, upper string) error { return replace(upper+"/etc/a", "no whiteout") },
		`"/tmp" has another mode`:                     func(_, upper string) error { return os.Chmod(upper+"/tmp", 0o755) },
		`"/new" has another attribute trusted.overla`: func(_, upper string) error { return unix.Removexattr(upper+"/new", "trusted.overlay.opaque") },
		`its folder is missing`:                       func(_, upper string) error { return os.RemoveAll(upper) },
	} {
		imagetest.Must(t, damage(folderOf(t, c, id, 0), folderOf(t, c, id, 1)))
		one := verified(t, c, id, false)
		found := slices.ContainsFunc(one.Damages, func(d Damage) bool {
			return slices.ContainsFunc(d.What, func(w string) bool { return strings.HasPrefix(w, what) })
		})
		if !found || one.Sound() {
			t.Errorf("%s: found %+v", what, one)
		}
		if one := verified(t, c, id, true); !one.Sound() || len(one.Damages) == 0 {
			t.Errorf("%s: repaired %+v", what, one)
		}
		if one := verified(t, c, id, false); len(one.Damages) > 0 || one.Err != nil {
			t.Errorf("%s: after the repair %+v", what, one)
		}
	}
	at := mounted(t, c, id)
	imagetest.WantFile(t, at("etc/twice"), "22")
	imagetest.WantFile(t, at("tmp/x"), "in an implied folder")
}

func replace(path, with string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(with), 0o644)
}

// TestRepairUnderContainer damages a layer that is mounted, and its blob. After the repair, the mount
// is as it was, new ones are undamaged, and the daemon's next start keeps both until the mount is gone.
func TestRepairUnderContainer(t *testing.T) {
	r := imagetest.NewRegistry(t)
	layer := imagetest.Gzip(imagetest.Tar(t, imagetest.File("a"), "undamaged", imagetest.File("b"), "also"))
	id, _ := r.Build("1", []imagetest.Layer{layer}, nil)
	other, _ := r.Build("2", []imagetest.Layer{layer, imagetest.Gzip(imagetest.Tar(t, imagetest.File("c"), "x"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	c.mustPull(t, r.Ref("app:2"))
	imagetest.Must(t, c.Hold(id, "container"))
	damaged := folderOf(t, c, id, 0)
	imagetest.Must(t, os.Truncate(damaged+"/a", 4))
	blob := c.blobs.Path(digest.FromBytes(layer.Blob))
	imagetest.Must(t, os.WriteFile(blob, []byte("no blob"), 0o444))
	old := mounted(t, c, id)
	one := verified(t, c, id, true)
	if !one.Sound() || len(one.Damages) != 2 || !slices.Equal(one.Damages[1].Users, []string{"container"}) {
		t.Fatalf("repaired %+v", one)
	}
	imagetest.WantFile(t, old("a"), "unda")
	imagetest.WantFile(t, old("b"), "also")
	imagetest.WantFile(t, mounted(t, c, id)("a"), "undamaged")
	if got, err := os.ReadFile(blob); err != nil || string(got) != string(layer.Blob) {
		t.Errorf("the blob has %d bytes (%v), want %d", len(got), err, len(layer.Blob))
	}
	if folderOf(t, c, id, 0) == damaged || folderOf(t, c, id, 0) != folderOf(t, c, other, 0) {
		t.Errorf("the images have the layers %s and %s, the damaged one is %s", folderOf(t, c, id, 0), folderOf(t, c, other, 0), damaged)
	}
	if !c.garbage.Sweep(longAgo()) {
		t.Error("nothing is left to be swept, but the damaged layer is mounted")
	}
	again, err := Open(t.Context(), c.cfg)
	imagetest.Must(t, err)
	imagetest.WantFile(t, old("b"), "also")
	if one := verified(t, again, id, false); len(one.Damages) > 0 || one.Err != nil {
		t.Errorf("after a restart: %+v", one)
	}
	imagetest.Must(t, c.Unmount(t.Context(), old("")))
	c.garbage.Sweep(longAgo())
	if _, err := os.Stat(damaged); !os.IsNotExist(err) {
		t.Errorf("the damaged layer is still here when nobody uses it: %v", err)
	}
}

// TestRepairWithoutRegistry: what cannot be pulled stays damaged, the image stays listed, also after
// a restart if the size is right, and a later pull sets it right.
func TestRepairWithoutRegistry(t *testing.T) {
	r := imagetest.NewRegistry(t)
	layer := imagetest.Gzip(imagetest.Tar(t, imagetest.File("a"), "undamaged"))
	id, _ := r.Build("1", []imagetest.Layer{layer}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	blob := c.blobs.Path(digest.FromBytes(layer.Blob))
	imagetest.Must(t, os.WriteFile(blob, make([]byte, len(layer.Blob)), 0o444))
	r.Close()
	one := verified(t, c, id, true)
	if one.Sound() || one.Err == nil || !strings.Contains(one.Err.Error(), "RegistryUnavailable") {
		t.Errorf("without a registry: %+v", one)
	}
	if left, err := os.ReadDir(filepath.Join(c.cfg.Root, "layers")); err != nil || len(left) != 3 {
		t.Errorf("layers/ has %v (%v), want empty, none and one layer", left, err)
	}
	again, err := Open(t.Context(), c.cfg)
	imagetest.Must(t, err)
	if _, err := again.Lookup(id); err != nil {
		t.Error(err)
	}
}
