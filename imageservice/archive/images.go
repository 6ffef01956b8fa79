package archive

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/manifest"
)

const (
	maxImages = 256

	// containerd, BuildKit and docker write the full name here, and the tag alone in the annotation
	// of the OCI layout. Others, such as skopeo, write the full name there.
	annotationName = "io.containerd.image.name"
)

// read finds the images. New versions of docker save write both formats into one archive; of these
// the OCI layout says more, but may lack the names.
func (a *Archive) read(ctx context.Context) error {
	_, isLayout := a.find("index.json")
	_, isDocker := a.find("manifest.json")
	switch {
	case isLayout:
		err := a.readLayout()
		if err == nil && isDocker && !a.named() {
			a.images = nil
			err = a.readDocker(ctx)
		}
		return err
	case isDocker:
		return a.readDocker(ctx)
	}
	return notAnArchive(errors.New("it has neither index.json nor manifest.json"))
}

func (a *Archive) named() bool {
	for _, i := range a.images {
		if len(i.Names) > 0 {
			return true
		}
	}
	return false
}

// readLayout reads an OCI image layout (image-spec, image-layout.md).
func (a *Archive) readLayout() error {
	raw, err := a.document("index.json")
	if err != nil {
		return err
	}
	doc, err := manifest.Decode(raw, ocispec.MediaTypeImageIndex)
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	if len(doc.Index.Manifests) > maxImages {
		return fault.Refuse(errdefs.ErrResourceExhausted, "the archive has more than %d images", maxImages)
	}
	for name, s := range a.files {
		if hex, ok := strings.CutPrefix(name, "/blobs/sha256/"); ok {
			a.blobs[digest.NewDigestFromEncoded(digest.SHA256, hex)] = s
		}
	}
	for _, d := range doc.Index.Manifests {
		if err := a.addRoot(d); err != nil {
			return err
		}
	}
	if len(a.images) == 0 {
		return notAnArchive(errors.New("index.json names no image"))
	}
	return nil
}

// addRoot adds an entry of index.json. Several entries may name the same image.
func (a *Archive) addRoot(d ocispec.Descriptor) error {
	if !manifest.IsManifest(d.MediaType) {
		return nil // a signature, for example
	}
	name, tag := d.Annotations[annotationName], d.Annotations[ocispec.AnnotationRefName]
	if name == "" && strings.ContainsAny(tag, "/:@") {
		name = tag
	}
	if strings.ContainsAny(tag, "/:@") {
		tag = ""
	}
	for i := range a.images {
		if a.images[i].Root == d.Digest {
			if name != "" {
				a.images[i].Names = append(a.images[i].Names, name)
			}
			return nil
		}
	}
	raw, err := a.document("blobs/" + strings.Replace(d.Digest.String(), ":", "/", 1))
	if err != nil {
		return err
	}
	image := Image{Tag: tag, Root: d.Digest, mediaType: d.MediaType, document: raw}
	if name != "" {
		image.Names = []string{name}
	}
	a.images = append(a.images, image)
	return nil
}

// readDocker reads what docker save writes: it has no manifest of the OCI, so one is made here.
func (a *Archive) readDocker(ctx context.Context) error {
	raw, err := a.document("manifest.json")
	if err != nil {
		return err
	}
	var all []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return notAnArchive(fmt.Errorf("manifest.json: %w", err))
	}
	if len(all) == 0 || len(all) > maxImages {
		return notAnArchive(fmt.Errorf("manifest.json has %d images", len(all)))
	}
	described := map[string]ocispec.Descriptor{} // by the paths of files; images share layers
	describe := func(name string) (d ocispec.Descriptor, err error) {
		d, ok := described[name]
		if !ok {
			d, err = a.describe(ctx, name)
			described[name] = d
		}
		return d, err
	}
	for _, one := range all {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Layers: []ocispec.Descriptor{}}
		if m.Config, err = describe(one.Config); err != nil {
			return err
		}
		m.Config.MediaType = ocispec.MediaTypeImageConfig
		for _, name := range one.Layers {
			layer, err := describe(name)
			if err != nil {
				return err
			}
			m.Layers = append(m.Layers, layer)
		}
		document, err := json.Marshal(m)
		if err != nil {
			return err
		}
		a.images = append(a.images, Image{Names: one.RepoTags, Root: digest.FromBytes(document), mediaType: m.MediaType,
			document: document})
	}
	return nil
}

// describe hashes a file, and makes a blob of it.
func (a *Archive) describe(ctx context.Context, name string) (ocispec.Descriptor, error) {
	s, ok := a.find(name)
	if !ok {
		return ocispec.Descriptor{}, notAnArchive(fmt.Errorf("%s: %w", fault.Clip(name), errNoFile))
	}
	h, r, magic := sha256.New(), a.reader(s), make([]byte, 4)
	n, _ := r.ReadAt(magic, 0)
	for buf := make([]byte, 256<<10); ; {
		if ctx.Err() != nil {
			return ocispec.Descriptor{}, context.Cause(ctx)
		}
		read, err := r.Read(buf)
		h.Write(buf[:read])
		if err == io.EOF {
			break
		}
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("read the archive: %w", err)
		}
	}
	d := ocispec.Descriptor{MediaType: layerType(magic[:n]), Digest: digest.NewDigest(digest.SHA256, h), Size: s.size}
	a.blobs[d.Digest] = s
	return d, nil
}

// layerType is the media type of a layer that begins like this.
func layerType(magic []byte) string {
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return ocispec.MediaTypeImageLayerGzip
	case string(magic) == "\x28\xb5\x2f\xfd":
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}
