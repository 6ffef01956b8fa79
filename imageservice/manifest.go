package imageservice

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

var acceptManifests = strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}, ", ")

// document is a decoded manifest or index.
type document struct {
	mediaType string
	index     *ocispec.Index
	manifest  *ocispec.Manifest
}

// decodeDocument decides by the declared type what raw is, and refuses what could be read as anything else (CVE-2021-41190): declared is
// the Content-Type of a root document or the media type of its descriptor, and the document's own mediaType has to agree.
func decodeDocument(raw []byte, declared string) (document, error) {
	if err := checkValues(raw); err != nil {
		return document{}, err
	}
	keys, err := topLevelKeys(raw)
	if err != nil {
		return document{}, refuse(errdefs.ErrInvalidArgument, "manifest is not an unambiguous JSON object: %v", err)
	}
	var own string
	if v, ok := keys["mediaType"]; ok && json.Unmarshal(v, &own) != nil {
		return document{}, refuse(errdefs.ErrInvalidArgument, "manifest has a mediaType that is no string")
	}
	kind := declared
	if !manifestType(kind) && own != "" {
		kind = own // a server that says application/json, or nothing
	}
	if own != "" && own != kind {
		return document{}, refuse(errdefs.ErrInvalidArgument, "manifest is served as %q and calls itself %q", clip(declared), clip(own))
	}
	has := func(k string) bool { _, ok := keys[k]; return ok }
	if strings.HasPrefix(kind, "application/vnd.docker.distribution.manifest.v1+") || has("fsLayers") {
		return document{}, refuse(errdefs.ErrNotImplemented, "manifest schema 1 is not supported, push the image again in a newer format")
	}
	if has("manifests") && (has("layers") || has("config")) {
		return document{}, refuse(errdefs.ErrInvalidArgument, "ambiguous document: it has both manifests and layers or config")
	}
	var version int
	if json.Unmarshal(keys["schemaVersion"], &version) != nil || version != 2 {
		return document{}, refuse(errdefs.ErrInvalidArgument, "manifest schemaVersion is not 2")
	}
	d := document{mediaType: kind}
	switch kind {
	case ocispec.MediaTypeImageIndex, dockerList:
		if !has("manifests") {
			return document{}, refuse(errdefs.ErrInvalidArgument, "index without manifests")
		}
		d.index = &ocispec.Index{}
		err = json.Unmarshal(raw, d.index)
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if !has("config") {
			return document{}, refuse(errdefs.ErrInvalidArgument, "manifest without config")
		}
		d.manifest = &ocispec.Manifest{}
		err = json.Unmarshal(raw, d.manifest)
	default:
		return document{}, refuse(errdefs.ErrNotImplemented, "manifest of type %q is not supported", clip(kind))
	}
	if err != nil {
		return document{}, refuse(errdefs.ErrInvalidArgument, "manifest does not decode: %v", err)
	}
	return d, nil
}

// checkValues counts before anything is decoded: two bytes of JSON may become a hundred and more of memory.
func checkValues(raw []byte) error {
	values, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '{' || c == '['):
			values++
		}
	}
	if values > maxValues {
		return refuse(errdefs.ErrResourceExhausted, "document of more than %d values", maxValues)
	}
	return nil
}

func manifestType(t string) bool {
	switch t {
	case ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest:
		return true
	}
	return strings.HasPrefix(t, "application/vnd.docker.distribution.manifest.v1+")
}

// knownKeys must not appear in another case: encoding/json would take "Layers" for "layers", other readers would not.
var knownKeys = []string{"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"}

// topLevelKeys lists the keys of a JSON object, each once, and nothing behind it.
func topLevelKeys(raw []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it does not begin with {")
	}
	keys := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		k, ok := t.(string)
		if !ok {
			return nil, errors.New("a key is no string")
		}
		if _, twice := keys[k]; twice {
			return nil, fmt.Errorf("key %q appears twice", clip(k))
		}
		if i := slices.IndexFunc(knownKeys, func(known string) bool { return strings.EqualFold(known, k) }); i >= 0 && knownKeys[i] != k {
			return nil, fmt.Errorf("key %q is not %q", k, knownKeys[i])
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		keys[k] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows it")
	}
	return keys, nil
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}

// choose picks the entry of an index that suits this machine best. Entries without a platform come last. ErrNotFound lists what there is.
func choose(index *ocispec.Index, want platforms.MatchComparer) (ocispec.Descriptor, error) {
	if len(index.Manifests) > maxIndexEntries {
		return ocispec.Descriptor{}, refuse(errdefs.ErrResourceExhausted, "index with %d entries, the most is %d", len(index.Manifests), maxIndexEntries)
	}
	var best *ocispec.Descriptor
	for i := range index.Manifests {
		m := &index.Manifests[i]
		if !manifestType(m.MediaType) || m.Platform != nil && !want.Match(*m.Platform) {
			continue
		}
		if best == nil || m.Platform != nil && (best.Platform == nil || want.Less(*m.Platform, *best.Platform)) {
			best = m
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, refuse(errdefs.ErrNotFound, "no image for %s, there are: %s", platforms.DefaultString(), offered(index))
	}
	return *best, checkDescriptor(*best, maxDocument)
}

func offered(index *ocispec.Index) string {
	var list []string
	for _, m := range index.Manifests {
		if m.Platform != nil && len(list) < 50 && m.Platform.OS != "unknown" {
			if p := clip(platforms.Format(*m.Platform)); !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// checkDescriptor refuses digests and sizes that are none, and contents that want to come from somewhere else.
func checkDescriptor(d ocispec.Descriptor, most int64) error {
	if err := checkDigest(d.Digest); err != nil {
		return refuse(errdefs.ErrInvalidArgument, "descriptor: %v", err)
	}
	if d.Size <= 0 {
		return refuse(errdefs.ErrInvalidArgument, "descriptor %s has size %d", d.Digest, d.Size)
	}
	if d.Size > most {
		return refuse(errdefs.ErrResourceExhausted, "descriptor %s has size %d, the most is %d", d.Digest, d.Size, most)
	}
	if len(d.URLs) > 0 {
		return refuse(errdefs.ErrNotImplemented, "descriptor %s wants to be fetched from foreign urls", d.Digest)
	}
	return nil
}

// checkManifest refuses what we do not run: other things than images, foreign and encrypted layers, too many or too large ones.
func checkManifest(m *ocispec.Manifest, l Limits) error {
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	default:
		return refuse(errdefs.ErrNotImplemented, "not a container image: its config has type %q", clip(m.Config.MediaType))
	}
	if err := checkDescriptor(m.Config, maxDocument); err != nil {
		return err
	}
	if len(m.Layers) > l.Layers {
		return refuse(errdefs.ErrResourceExhausted, "image with %d layers, the most is %d", len(m.Layers), l.Layers)
	}
	var total int64
	for _, d := range m.Layers {
		if err := checkLayerType(d.MediaType); err != nil {
			return err
		}
		if err := checkDescriptor(d, l.ImageBytes); err != nil {
			return err
		}
		if total += d.Size; total > l.ImageBytes {
			return refuse(errdefs.ErrResourceExhausted, "image with more than %d compressed bytes", l.ImageBytes)
		}
	}
	return nil
}

func checkLayerType(t string) error {
	switch t {
	case dockerLayer, dockerLayer + ".gzip", dockerLayer + ".zstd",
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
		return nil
	}
	why := "is not supported"
	switch {
	case strings.HasSuffix(t, "+encrypted"):
		why = "is encrypted"
	case strings.Contains(t, "foreign") || strings.Contains(t, "nondistributable"):
		why = "is foreign"
	}
	return refuse(errdefs.ErrNotImplemented, "layer of type %q %s", clip(t), why)
}

// decodeConfig checks an image config against its manifest and this machine.
func decodeConfig(raw []byte, m *ocispec.Manifest, want platforms.MatchComparer) (ocispec.Image, error) {
	var img ocispec.Image
	if err := checkValues(raw); err != nil {
		return img, err
	}
	if err := json.Unmarshal(raw, &img); err != nil {
		return img, refuse(errdefs.ErrInvalidArgument, "image config does not decode: %v", err)
	}
	if len(img.RootFS.DiffIDs) != len(m.Layers) || img.RootFS.Type != "layers" && len(m.Layers) > 0 {
		return img, refuse(errdefs.ErrInvalidArgument, "image config names %d diff ids, its manifest %d layers", len(img.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range img.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return img, refuse(errdefs.ErrInvalidArgument, "image config, diff id: %v", err)
		}
	}
	if img.OS != "" && img.Architecture != "" && !want.Match(platforms.Normalize(img.Platform)) {
		return img, refuse(errdefs.ErrNotFound, "no image for %s, there are: %s", platforms.DefaultString(), clip(platforms.Format(img.Platform)))
	}
	return img, nil
}

// descriptorOf describes a document we have in hand.
func descriptorOf(raw []byte, mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}
