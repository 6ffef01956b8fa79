package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

// containerd is a store that its own libraries write, and have open.
type containerd struct {
	*testing.T
	root string
	db   *metadata.DB
	ctx  context.Context
}

func newContainerd(t *testing.T) *containerd {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(metaFile)), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(root, metaFile), 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	blobs, err := local.NewStore(filepath.Join(root, filepath.Dir(blobsFolder)))
	if err != nil {
		t.Fatal(err)
	}
	c := &containerd{T: t, root: root, db: metadata.NewDB(db, blobs, nil),
		ctx: namespaces.WithNamespace(t.Context(), kubernetes)}
	if err := c.db.Init(c.ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// blob writes a blob and describes it.
func (c *containerd) blob(mediaType string, b []byte) ocispec.Descriptor {
	c.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(c.ctx, c.db.ContentStore(), d.Digest.String(), bytes.NewReader(b), d); err != nil {
		c.Fatal(err)
	}
	return d
}

// image writes the blobs of an image in an index with two platforms, of which one is here.
func (c *containerd) image(name string, layers ...string) (index, layer ocispec.Descriptor) {
	c.Helper()
	m := ocispec.Manifest{Config: c.blob(ocispec.MediaTypeImageConfig, []byte("{}"+name))}
	for _, l := range layers {
		layer = c.blob(ocispec.MediaTypeImageLayer, []byte(l))
		m.Layers = append(m.Layers, layer)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		c.Fatal(err)
	}
	other := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Size: 5}
	raw, err = json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{other, c.blob(other.MediaType, raw)}})
	if err != nil {
		c.Fatal(err)
	}
	return c.blob(ocispec.MediaTypeImageIndex, raw), layer
}

func (c *containerd) name(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) {
	c.Helper()
	if _, err := metadata.NewImageStore(c.db).Create(ctx, images.Image{Name: name, Target: target, Labels: labels}); err != nil {
		c.Fatal(err)
	}
}

// TestStore reads what containerd's own libraries have written, while they have it open: names, pins,
// what is not kept, and what is somebody else's.
func TestStore(t *testing.T) {
	c := newContainerd(t)
	app, _ := c.image("app", "layer one", "layer two")
	c.name(c.ctx, "registry.test/app:1", app, map[string]string{pinnedLabel: "pinned"})
	c.name(c.ctx, "registry.test/app@"+app.Digest.String(), app, nil)
	c.name(c.ctx, digest.FromString("an id").String(), app, nil)
	lacking, layer := c.image("lacking", "layer one", "layer three")
	c.name(c.ctx, "registry.test/lacking:1", lacking, nil)
	if err := os.Remove(filepath.Join(c.root, blobsFolder, "sha256", layer.Digest.Encoded())); err != nil { // discarded
		t.Fatal(err)
	}
	c.name(namespaces.WithNamespace(c.ctx, "moby"), "docker.io/library/x:1", app, nil)

	s, err := OpenStore(c.root)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Images) != 2 || s.Others["moby"] != 1 {
		t.Fatalf("the store has %+v, %v", s.Images, s.Others)
	}
	names := []string{"registry.test/app:1", "registry.test/app@" + app.Digest.String()}
	if i := s.Images[0]; !slices.Equal(i.Names, names) || !i.Pinned || i.Digest != app.Digest.String() ||
		i.MediaType != ocispec.MediaTypeImageIndex {
		t.Errorf("the first image is %+v", i)
	}
	if size, err := s.Complete(s.Images[0]); err != nil || size < int64(len("layer onelayer two")) {
		t.Errorf("it has %d bytes, %v", size, err)
	}
	if _, err := s.Complete(s.Images[1]); err == nil || !strings.Contains(err.Error(), "1 of its 3 blobs are not kept") {
		t.Errorf("of an image without a layer: %v", err)
	}
	if s, err := OpenStore(t.TempDir()); err != nil || len(s.Images) > 0 {
		t.Errorf("an empty folder has %v, %v", s, err)
	}
}
