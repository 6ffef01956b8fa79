package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
)

// recordFormat is the format of the records that this version reads and writes. A later version
// must read this format, too.
const recordFormat = 1

// Record is everything about an image that cannot be computed from its blobs. A Record in memory is
// immutable; a change makes a new Record.
type Record struct {
	ID      string         `json:"id"`
	Tags    []tag          `json:"tags,omitempty"`
	Digests []string       `json:"digests,omitempty"` // repository@digest of the manifests or indexes that name it
	Blobs   []content.Blob `json:"blobs"`             // all blobs that exist because of this image
	Layers  []layers.Layer `json:"layers"`            // bottom first, as in the config
	Size    int64          `json:"size"`              // compressed bytes of this platform's manifest, config and layers

	// ByDigest are those of Digests that were pulled by digest. Older versions did not write it.
	ByDigest []string `json:"by_digest,omitempty"`

	Config ocispec.Image `json:"-"` // read from its blob
}

// tag is one name. After a crash between two writes, two records may claim it; the higher serial
// wins.
type tag struct {
	Name   string `json:"name"`
	Serial uint64 `json:"serial"`
	// Root is the digest that the tag had at its last pull. Older versions did not write it.
	Root digest.Digest `json:"root,omitempty"`
}

// file is the JSON on disk. Sum is the SHA-256 of Record's bytes; a record with a wrong sum is not
// used at all.
type file struct {
	Format int             `json:"format"`
	Sum    string          `json:"sum"`
	Record json.RawMessage `json:"record"`
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func encodeRecord(r *Record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(file{Format: recordFormat, Sum: sum(body), Record: body})
}

// errNewer means that a newer version wrote the record. The record is not damaged.
var errNewer = errors.New("use the version that wrote it")

func decodeRecord(b []byte, id string) (*Record, error) {
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Format > recordFormat {
		return nil, fmt.Errorf("it has format %d, and this version reads up to %d: %w", f.Format, recordFormat, errNewer)
	}
	if f.Format != recordFormat {
		return nil, fmt.Errorf("it has format %d, not %d", f.Format, recordFormat)
	}
	if sum(f.Record) != f.Sum {
		return nil, errors.New("checksum does not match")
	}
	r := &Record{}
	if err := json.Unmarshal(f.Record, r); err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, fmt.Errorf("it is the record of image %q", r.ID)
	}
	for _, b := range r.Blobs {
		if err := imageref.CheckDigest(b.Digest); err != nil {
			return nil, err
		}
	}
	for _, l := range r.Layers {
		if strings.Trim(l.Dir, "0123456789") != "" || l.Dir == "" {
			return nil, fmt.Errorf("layer directory %q", l.Dir)
		}
	}
	return r, nil
}

// Image returns the public view of the record. The slices belong to the caller.
func (r *Record) Image(pinned func(string) bool) Image {
	img := Image{ID: r.ID, RepoDigests: slices.Clone(r.Digests), Size: r.Size, Config: r.Config}
	for _, t := range r.Tags {
		img.RepoTags = append(img.RepoTags, t.Name)
		img.Pinned = img.Pinned || pinned(t.Name)
	}
	for _, d := range r.Digests {
		img.Pinned = img.Pinned || pinned(d)
	}
	slices.Sort(img.RepoTags)
	slices.Sort(img.RepoDigests)
	return img
}

// addBlob adds a blob, or updates what is known about it. It reports whether the record changed.
func (r *Record) addBlob(b content.Blob) bool {
	i := slices.IndexFunc(r.Blobs, func(have content.Blob) bool { return have.Digest == b.Digest })
	switch {
	case i < 0:
		r.Blobs = append(r.Blobs, b)
	case b.DiffID == "" || r.Blobs[i] == b:
		return false
	default:
		r.Blobs[i] = b
	}
	return true
}

// addDigest adds a digest reference. It reports whether the record changed.
func (r *Record) addDigest(reference string, byDigest bool) (changed bool) {
	if r.unexplained() {
		// A record of an older version does not say which references were pulled by digest, so all
		// of them stay.
		r.ByDigest = slices.Clone(r.Digests)
	}
	if !slices.Contains(r.Digests, reference) {
		r.Digests, changed = append(r.Digests, reference), true
	}
	if byDigest && !slices.Contains(r.ByDigest, reference) {
		r.ByDigest, changed = append(r.ByDigest, reference), true
	}
	return changed
}

// unexplained reports whether nothing says why the record has its digest references: an older
// version wrote it.
func (r *Record) unexplained() bool {
	return len(r.Digests) > 0 && len(r.ByDigest) == 0 &&
		!slices.ContainsFunc(r.Tags, func(t tag) bool { return t.Root != "" })
}

// setRoot sets the digest that a tag points to. It reports whether the record changed.
func (r *Record) setRoot(name string, root digest.Digest) bool {
	i := slices.IndexFunc(r.Tags, func(t tag) bool { return t.Name == name })
	if i < 0 || r.Tags[i].Root == root {
		return false
	}
	r.Tags[i].Root = root
	return true
}

// repositoryOf returns the repository of a digest reference.
func repositoryOf(reference string) string {
	repository, _, _ := strings.Cut(reference, "@")
	return repository
}

// forgetRoots removes a repository's digest references that no tag points to any more and that were
// not pulled by digest. They are left when a tag was pushed again with other platforms. It returns
// the blobs that only they needed. root is the new root digest, and current are the blobs that this
// pull needs.
func (r *Record) forgetRoots(repository string, root digest.Digest, current []content.Blob) (garbage []content.Blob) {
	stays := func(reference string) bool {
		return repositoryOf(reference) != repository || slices.Contains(r.ByDigest, reference) ||
			reference == repository+"@"+string(root) ||
			slices.ContainsFunc(r.Tags, func(t tag) bool {
				return t.Root != "" && strings.HasPrefix(t.Name, repository+":") && reference == repository+"@"+string(t.Root)
			})
	}
	kept := slices.DeleteFunc(slices.Clone(r.Digests), func(d string) bool { return !stays(d) })
	if len(kept) == len(r.Digests) {
		return nil
	}
	dropped := slices.DeleteFunc(r.Digests, stays)
	r.Digests = kept
	needed := func(b content.Blob) bool {
		if slices.ContainsFunc(current, func(c content.Blob) bool { return c.Digest == b.Digest }) {
			return true
		}
		names := func(reference string) bool { return strings.HasSuffix(reference, "@"+string(b.Digest)) }
		if slices.ContainsFunc(kept, func(d string) bool { return !strings.HasSuffix(d, "@"+string(root)) }) {
			return !slices.ContainsFunc(dropped, names) || slices.ContainsFunc(kept, names) // other images may need the rest
		}
		return false
	}
	garbage = slices.DeleteFunc(slices.Clone(r.Blobs), needed)
	r.Blobs = slices.DeleteFunc(r.Blobs, func(b content.Blob) bool { return !needed(b) })
	return garbage
}

// Keys returns the data keys of the image's blobs and layers.
func (r *Record) Keys() []string {
	keys := make([]string, 0, len(r.Blobs)+len(r.Layers))
	for _, b := range r.Blobs {
		keys = append(keys, content.BlobKey(b.Digest))
	}
	for _, l := range r.Layers {
		keys = append(keys, content.LayerPrefix+l.Key())
	}
	return keys
}

// Stack returns the lower directories for overlayfs, relative to layers/, topmost first, at least
// one. A layer that occurs twice is listed once, at its topmost position: overlayfs refuses it
// twice, and its lower occurrence would be hidden anyway. Layers below one with an opaque root are
// omitted.
func (r *Record) Stack() (names []string) {
	seen := map[string]bool{}
	for _, l := range slices.Backward(r.Layers) {
		if !seen[l.Dir] {
			names = append(names, l.Dir+"/fs")
		}
		seen[l.Dir] = true
		if l.Opaque {
			break
		}
	}
	if len(names) == 0 {
		names = []string{"empty"}
	}
	return names
}

// WithLayer returns a copy of the record that lists fresh in the place of the layer in the folder dir.
func (r *Record) WithLayer(dir string, fresh layers.Layer) *Record {
	c := *r
	c.Layers = slices.Clone(r.Layers)
	for i := range c.Layers {
		if c.Layers[i].Dir == dir {
			c.Layers[i] = fresh
		}
	}
	return &c
}

func (r *Record) hasTag(name string) bool {
	return slices.ContainsFunc(r.Tags, func(t tag) bool { return t.Name == name })
}

func (r *Record) withoutTag(name string) *Record {
	c := *r
	c.Tags = slices.DeleteFunc(slices.Clone(r.Tags), func(t tag) bool { return t.Name == name })
	return &c
}

// Image is one image as the CRI reports it.
type Image struct {
	ID          string        // "sha256:" and the hex digest of the config; the same string in every API
	RepoTags    []string      // fully qualified ("docker.io/library/busybox:1"), sorted; empty after a pull by digest
	RepoDigests []string      // fully qualified ("registry.k8s.io/pause@sha256:..."), sorted
	Size        int64         // compressed bytes of this platform's manifest, config and layers; > 0
	Config      ocispec.Image // the config; its maps and slices are shared and must not be changed
	Pinned      bool          // one of its names matches a name given to SetPinned
	InUse       bool          // somebody holds it; not set for the result of a pull
}
