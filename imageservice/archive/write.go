package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Saved is an image to write.
type Saved struct {
	Names    []string // with tags; all of them are written
	Root     ocispec.Descriptor
	Manifest *ocispec.Manifest // the document of Root
}

// Write writes images as an OCI layout which docker load reads too. path returns the file of a
// blob. ErrDataLoss if a blob does not have its digest any more; the archive is then not complete.
func Write(ctx context.Context, w io.Writer, images []Saved, path func(digest.Digest) string) error {
	t := &writer{ctx: ctx, tar: tar.NewWriter(w), path: path, written: map[digest.Digest]bool{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{}}
	var list []dockerImage
	for _, i := range images {
		for _, d := range append([]ocispec.Descriptor{i.Manifest.Config, i.Root}, i.Manifest.Layers...) {
			if err := t.blob(d); err != nil {
				return err
			}
		}
		index.Manifests = append(index.Manifests, entries(i)...)
		list = append(list, dockerOf(i))
	}
	for _, doc := range []struct {
		name string
		v    any
	}{
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {"index.json", index},
		{"manifest.json", list},
	} {
		if err := t.document(doc.name, doc.v); err != nil {
			return err
		}
	}
	return t.tar.Close()
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func dockerOf(i Saved) dockerImage {
	d := dockerImage{Config: blobName(i.Manifest.Config.Digest), RepoTags: i.Names, Layers: []string{}}
	for _, l := range i.Manifest.Layers {
		d.Layers = append(d.Layers, blobName(l.Digest))
	}
	return d
}

// entries are what index.json says of an image: one for each name.
func entries(i Saved) (all []ocispec.Descriptor) {
	for _, name := range i.Names {
		d := i.Root
		d.Annotations = map[string]string{annotationName: name, ocispec.AnnotationRefName: name}
		all = append(all, d)
	}
	if len(i.Names) == 0 {
		all = append(all, i.Root)
	}
	return all
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

type writer struct {
	ctx     context.Context
	tar     *tar.Writer
	path    func(digest.Digest) string
	written map[digest.Digest]bool
}

func (t *writer) document(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := t.header(name, int64(len(b))); err != nil {
		return err
	}
	_, err = t.tar.Write(b)
	return err
}

// header begins a file. Archives of the same images have the same bytes.
func (t *writer) header(name string, size int64) error {
	return t.tar.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size,
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// blob writes a blob unless it is in the archive, and hashes it meanwhile.
func (t *writer) blob(d ocispec.Descriptor) error {
	if t.written[d.Digest] {
		return nil
	}
	f, err := os.Open(t.path(d.Digest))
	if err != nil {
		return fmt.Errorf("blob %s: %w: %w", d.Digest, err, errdefs.ErrDataLoss)
	}
	defer f.Close()
	if err := t.header(blobName(d.Digest), d.Size); err != nil {
		return err
	}
	hash, buf := sha256.New(), make([]byte, 256<<10)
	for rest := d.Size; rest > 0; {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		n, err := f.Read(buf[:min(int64(len(buf)), rest)])
		if n == 0 && err != nil {
			return fmt.Errorf("blob %s ends %d bytes early: %w: %w", d.Digest, rest, err, errdefs.ErrDataLoss)
		}
		hash.Write(buf[:n])
		if _, err := t.tar.Write(buf[:n]); err != nil {
			return err
		}
		rest -= int64(n)
	}
	if got := digest.NewDigest(digest.SHA256, hash); got != d.Digest {
		return fmt.Errorf("blob %s has digest %s on this disk; remove the image and pull it again: %w",
			d.Digest, got, errdefs.ErrDataLoss)
	}
	t.written[d.Digest] = true
	return nil
}
