package imageservice

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/manifest"
)

// newImages opens an image service on a new folder.
func newImages(t testing.TB, edit func(*Config)) *Images {
	t.Helper()
	c := Config{Root: filepath.Join(t.TempDir(), "root"), StallTimeout: 10 * time.Second}
	if edit != nil {
		edit(&c)
	}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *Images) mustPull(t testing.TB, ref string) Image {
	t.Helper()
	img, err := c.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// mounted mounts the image, and returns a function that returns the path of a file in it.
func mounted(t testing.TB, c *Images, id string) func(string) string {
	t.Helper()
	dir := t.TempDir()
	target := filepath.Join(dir, "rootfs")
	if err := c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(dir, "c"), Target: target}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Unmount(context.Background(), target); err != nil {
			t.Error(err)
		}
	})
	return func(name string) string { return filepath.Join(target, name) }
}

func TestPullFormats(t *testing.T) {
	base := imagetest.Tar(t, imagetest.Dir("etc", 0o755), imagetest.File("etc/a"), "from base", imagetest.File("etc/b"), "hidden later")
	upper := imagetest.Tar(t, imagetest.Dir("etc", 0o755), imagetest.File("etc/.wh.b"), imagetest.File("etc/c"), "from upper")
	for name, wrap := range map[string]func([]byte) imagetest.Layer{"plain": imagetest.Plain, "gzip": imagetest.Gzip, "zstd": imagetest.Zstd} {
		for _, docker := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				r := imagetest.NewRegistry(t)
				id, desc := r.Build("1", []imagetest.Layer{wrap(base), wrap(upper)}, func(m *ocispec.Manifest, _ *ocispec.Image) {
					if docker {
						m.MediaType = manifest.DockerManifest
						for i := range m.Layers {
							m.Layers[i].MediaType = manifest.DockerLayer + map[string]string{"plain": "", "gzip": ".gzip", "zstd": ".zstd"}[name]
						}
					}
				})
				c := newImages(t, nil)
				img := c.mustPull(t, r.Ref("app:1"))
				if img.ID != id || !slices.Equal(img.RepoTags, []string{r.Ref("app:1")}) || !slices.Equal(img.RepoDigests, []string{r.Ref("app@" + desc.Digest.String())}) {
					t.Errorf("pulled %+v", img)
				}
				if img.Size <= 0 || !slices.Equal(img.Config.Config.Env, []string{"TAG=1"}) {
					t.Errorf("size %d, config %+v", img.Size, img.Config.Config)
				}
				at := mounted(t, c, id)
				imagetest.WantFile(t, at("etc/a"), "from base")
				imagetest.WantFile(t, at("etc/c"), "from upper")
				if _, err := os.Lstat(at("etc/b")); !os.IsNotExist(err) {
					t.Errorf("whited out file: %v", err)
				}
			})
		}
	}
}

func TestPullNotFound(t *testing.T) {
	r := imagetest.NewRegistry(t)
	_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:none"), nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no such thing") {
		t.Fatal(err)
	}
}
