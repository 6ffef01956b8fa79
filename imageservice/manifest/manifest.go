// Package manifest parses the documents of an image, and refuses documents that two parsers could
// interpret differently. It fetches nothing.
package manifest

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

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
)

const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	DockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// Limits of a document.
const (
	MaxBytes   = 4 << 20 // bytes of a manifest, index or image config
	maxValues  = 1 << 17 // JSON values in one document
	MaxEntries = 1024    // manifests in one index
	maxUnsaid  = 64      // entries without a platform whose configs are read, per index
)

var Accept = strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerList,
	DockerManifest}, ", ")

// document is a decoded manifest or index.
type document struct {
	mediaType string
	Index     *ocispec.Index
	Manifest  *ocispec.Manifest
}

// Decode decodes a manifest or index. It refuses a document that could also be read as another type
// (CVE-2021-41190): declared is the Content-Type of a root document or the media type of its
// descriptor, and the document's own mediaType must agree with it.
func Decode(raw []byte, declared string) (document, error) {
	if err := checkValues(raw); err != nil {
		return document{}, err
	}
	keys, err := topLevelKeys(raw)
	if err != nil {
		return document{}, fault.Refuse(errdefs.ErrInvalidArgument, "manifest is not an unambiguous JSON object: %v", err)
	}
	var own string
	if v, ok := keys["mediaType"]; ok && json.Unmarshal(v, &own) != nil {
		return document{}, fault.Refuse(errdefs.ErrInvalidArgument, "manifest has a mediaType that is not a string")
	}
	has := func(k string) bool { return !nothing(keys[k]) }
	kind := declared
	if !IsManifest(kind) && own != "" {
		kind = own // the server sends no type or a generic one such as application/json
	}
	if generic(kind) {
		kind = guess(has)
	}
	// Docker and OCI have different names for the same types.
	if own != "" && own != kind && (!IsManifest(own) || IsIndex(own) != IsIndex(kind)) {
		return document{}, fault.Refuse(errdefs.ErrInvalidArgument, "manifest is served as %q but its mediaType is %q",
			fault.Clip(declared), fault.Clip(own))
	}
	if strings.HasPrefix(kind, "application/vnd.docker.distribution.manifest.v1+") || has("fsLayers") {
		return document{}, fault.Refuse(errdefs.ErrNotImplemented,
			"manifest schema 1 is not supported, push the image again in a newer format")
	}
	if has("manifests") && (has("layers") || has("config")) {
		return document{}, fault.Refuse(errdefs.ErrInvalidArgument,
			"ambiguous document: it has both manifests and layers or a config")
	}
	if bytes.Equal(bytes.TrimSpace(keys["schemaVersion"]), []byte("1")) {
		return document{}, fault.Refuse(errdefs.ErrNotImplemented,
			"manifest schema 1 is not supported, push the image again in a newer format")
	}
	d := document{mediaType: kind}
	switch kind {
	case ocispec.MediaTypeImageIndex, DockerList:
		if _, ok := keys["manifests"]; !ok {
			return document{}, fault.Refuse(errdefs.ErrInvalidArgument, "index without manifests")
		}
		d.Index = &ocispec.Index{}
		err = json.Unmarshal(raw, d.Index)
	case ocispec.MediaTypeImageManifest, DockerManifest:
		if !has("config") {
			return document{}, fault.Refuse(errdefs.ErrInvalidArgument, "manifest without config")
		}
		d.Manifest = &ocispec.Manifest{}
		err = json.Unmarshal(raw, d.Manifest)
	default:
		return document{}, fault.Refuse(errdefs.ErrNotImplemented, "manifest of type %q is not supported", fault.Clip(kind))
	}
	if err != nil {
		return document{}, fault.Refuse(errdefs.ErrInvalidArgument, "cannot decode the manifest: %v", err)
	}
	return d, nil
}

// nothing reports whether a value is as good as a missing key. Some tools write all fields, with
// empty values.
func nothing(v json.RawMessage) bool {
	if len(v) > 100 {
		return false
	}
	switch string(bytes.Join(bytes.Fields(v), nil)) {
	case "", "null", "[]", "{}":
		return true
	}
	return false
}

// generic reports whether a content type says nothing about the document.
func generic(t string) bool {
	switch t {
	case "", "application/json", "application/octet-stream", "text/plain":
		return true
	}
	return false
}

// guess returns the type of a document that declares none. Ambiguous documents are refused
// elsewhere.
func guess(has func(string) bool) string {
	switch {
	case has("manifests"):
		return ocispec.MediaTypeImageIndex
	case has("config"):
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

func IsIndex(t string) bool { return t == ocispec.MediaTypeImageIndex || t == DockerList }

// checkValues limits the number of values before anything is decoded: two bytes of JSON may need a
// hundred bytes of memory or more.
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
		return fault.Refuse(errdefs.ErrResourceExhausted, "document of more than %d values", maxValues)
	}
	return nil
}

func IsManifest(t string) bool {
	switch t {
	case ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerList, DockerManifest:
		return true
	}
	return strings.HasPrefix(t, "application/vnd.docker.distribution.manifest.v1+")
}

// knownKeys must not appear in another case: encoding/json would accept "Layers" as "layers", other
// parsers would not.
var knownKeys = []string{"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"}

// topLevelKeys returns the keys of a JSON object. It returns an error for a duplicate key, and for
// data after the object.
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
			return nil, errors.New("a key is not a string")
		}
		if _, twice := keys[k]; twice {
			return nil, fmt.Errorf("key %q appears twice", fault.Clip(k))
		}
		if i := slices.IndexFunc(knownKeys, func(known string) bool { return strings.EqualFold(known, k) }); i >= 0 &&
			knownKeys[i] != k {
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
		return nil, errors.New("there is more data after it")
	}
	return keys, nil
}

// Choose returns the entry of an index that matches this machine best. If none has a matching
// platform, it returns the entries without a platform, whose configs must be read. ErrNotFound
// lists the available platforms.
func Choose(index *ocispec.Index, want platforms.MatchComparer) ([]ocispec.Descriptor, error) {
	if len(index.Manifests) > MaxEntries {
		return nil, fault.Refuse(errdefs.ErrResourceExhausted, "index with %d entries, the limit is %d",
			len(index.Manifests), MaxEntries)
	}
	var best *ocispec.Descriptor
	var unsaid []ocispec.Descriptor
	for i := range index.Manifests {
		m := &index.Manifests[i]
		switch {
		case !IsManifest(m.MediaType):
		case m.Platform == nil:
			if len(unsaid) < maxUnsaid {
				unsaid = append(unsaid, *m)
			}
		case want.Match(*m.Platform) && (best == nil || want.Less(*m.Platform, *best.Platform)):
			best = m
		}
	}
	if best != nil {
		unsaid = []ocispec.Descriptor{*best}
	}
	if len(unsaid) == 0 {
		return nil, fault.Refuse(errdefs.ErrNotFound, "no image for %s, available: %s",
			platforms.DefaultString(), offered(index))
	}
	for _, d := range unsaid {
		if err := checkDescriptor(d, MaxBytes); err != nil {
			return nil, err
		}
	}
	return unsaid, nil
}

func offered(index *ocispec.Index) string {
	var list []string
	for _, m := range index.Manifests {
		if m.Platform != nil && len(list) < 50 && m.Platform.OS != "unknown" {
			if p := fault.Clip(platforms.Format(*m.Platform)); !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// checkDescriptor refuses invalid digests and sizes. Its urls are ignored, because otherwise the
// author of an image could make this node send requests to any server.
func checkDescriptor(d ocispec.Descriptor, most int64) error {
	if err := imageref.CheckDigest(d.Digest); err != nil {
		return fault.Refuse(errdefs.ErrInvalidArgument, "descriptor: %v", err)
	}
	if d.Size <= 0 {
		return fault.Refuse(errdefs.ErrInvalidArgument, "descriptor %s has size %d", d.Digest, d.Size)
	}
	if d.Size > most {
		return fault.Refuse(errdefs.ErrResourceExhausted, "descriptor %s has size %d, the limit is %d",
			d.Digest, d.Size, most)
	}
	return nil
}

// Check refuses what cribox cannot run: artifacts that are not images, encrypted layers, and too
// many or too large layers.
func Check(m *ocispec.Manifest, maxLayers int, maxBytes int64) error {
	switch t := m.Config.MediaType; {
	case t == ocispec.MediaTypeImageConfig || t == DockerConfig || generic(t):
	default:
		return fault.Refuse(errdefs.ErrNotImplemented, "not a container image: its config has type %q", fault.Clip(t))
	}
	if err := checkDescriptor(m.Config, MaxBytes); err != nil {
		return err
	}
	if len(m.Layers) > maxLayers {
		return fault.Refuse(errdefs.ErrResourceExhausted, "image with %d layers, the limit is %d", len(m.Layers), maxLayers)
	}
	var total int64
	for _, d := range m.Layers {
		if err := checkLayerType(d.MediaType); err != nil {
			return err
		}
		if err := checkDescriptor(d, maxBytes); err != nil {
			return err
		}
		if total += d.Size; total > maxBytes {
			return fault.Refuse(errdefs.ErrResourceExhausted, "image with more than %d compressed bytes (image_size_max)",
				maxBytes)
		}
	}
	return nil
}

// checkLayerType accepts every kind of tar; the first bytes of the layer say how it is compressed.
// A foreign layer need not be in the registry, but if it is there, it is used like any other.
func checkLayerType(t string) error {
	if strings.HasSuffix(t, "+encrypted") {
		return fault.Refuse(errdefs.ErrNotImplemented, "layer of type %q is encrypted", fault.Clip(t))
	}
	base, _, _ := strings.Cut(t, "+")
	switch base {
	case DockerLayer, DockerLayer + ".gzip", DockerLayer + ".zstd", dockerForeign, dockerForeign + ".gzip",
		dockerForeign + ".zstd":
		return nil
	}
	if strings.HasPrefix(base, "application/vnd.oci.image.layer.") && strings.HasSuffix(base, ".tar") {
		return nil
	}
	return fault.Refuse(errdefs.ErrNotImplemented, "layer of type %q is not supported", fault.Clip(t))
}

// IsForeign reports whether a layer may be missing from the registry of its image.
func IsForeign(d ocispec.Descriptor) bool {
	return len(d.URLs) > 0 || strings.Contains(d.MediaType, "foreign") || strings.Contains(d.MediaType, "nondistributable")
}

// DecodeConfig decodes an image config and checks it against its manifest.
func DecodeConfig(raw []byte, m *ocispec.Manifest) (ocispec.Image, error) {
	var img ocispec.Image
	if err := checkValues(raw); err != nil {
		return img, err
	}
	if err := json.Unmarshal(raw, &img); err != nil {
		return img, fault.Refuse(errdefs.ErrInvalidArgument, "cannot decode the image config: %v", err)
	}
	if len(img.RootFS.DiffIDs) != len(m.Layers) {
		return img, fault.Refuse(errdefs.ErrInvalidArgument,
			"image config lists %d diff ids, but its manifest lists %d layers", len(img.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range img.RootFS.DiffIDs {
		if err := imageref.CheckDigest(d); err != nil {
			return img, fault.Refuse(errdefs.ErrInvalidArgument, "image config, diff id: %v", err)
		}
	}
	return img, nil
}

// Describe returns the descriptor of a document.
func Describe(raw []byte, mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}
