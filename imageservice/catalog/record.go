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

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// recordFormat is the number in every record we write. We read this one only; a later one reads
// ours.
const recordFormat = 1

// Record is everything we know about an image and cannot compute from its blobs. In memory it is
// immutable: a change is a new record.
type Record struct {
	ID      string         `json:"id"`
	Tags    []tag          `json:"tags,omitempty"`
	Digests []string       `json:"digests,omitempty"` // repository@digest of the root documents that name it
	Blobs   []content.Blob `json:"blobs"`             // every blob that exists because of this image
	Layers  []layers.Layer `json:"layers"`            // bottom first, as in the config
	Size    int64          `json:"size"`              // manifest, config and layers of this platform, compressed bytes

	// ByDigest are those of Digests that somebody has pulled by digest. Older versions did not
	// write it.
	ByDigest []string `json:"by_digest,omitempty"`

	Config ocispec.Image `json:"-"` // as its blob has it
}

// tag is a name. Two records may both claim one after a crash between two writes: the higher serial
// is the later claim.
type tag struct {
	Name   string `json:"name"`
	Serial uint64 `json:"serial"`
	// Root is what the tag pointed to when it was pulled last. Older versions did not write it.
	Root digest.Digest `json:"root,omitempty"`
}

// file is the JSON on disk. Sum is the sha256 of Record's bytes: a record is believed whole or not
// at all.
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

// errNewer: a newer version wrote the record. It is no damage.
var errNewer = errors.New("use the version that wrote it")

func decodeRecord(b []byte, id string) (*Record, error) {
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Format > recordFormat {
		return nil, fmt.Errorf("format %d, this version reads up to %d: %w", f.Format, recordFormat, errNewer)
	}
	if f.Format != recordFormat {
		return nil, fmt.Errorf("format %d, not %d", f.Format, recordFormat)
	}
	if sum(f.Record) != f.Sum {
		return nil, errors.New("checksum does not match")
	}
	r := &Record{}
	if err := json.Unmarshal(f.Record, r); err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, fmt.Errorf("it is the record of %q", r.ID)
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

// Image is the public view. The slices are the caller's own.
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

// addBlob lists a blob, or what is known of it now. It returns whether that changes anything.
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

// addDigest lists a digest reference. It returns whether that changes anything.
func (r *Record) addDigest(reference string, byDigest bool) (changed bool) {
	if r.unexplained() {
		// Of a record of an older version nobody knows which were pulled by digest: all of them
		// stay.
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

// unexplained tells whether it has digest references of which nothing says why they are there.
func (r *Record) unexplained() bool {
	return len(r.Digests) > 0 && len(r.ByDigest) == 0 && !slices.ContainsFunc(r.Tags, func(t tag) bool { return t.Root != "" })
}

// setRoot says what a tag points to now. It returns whether that changes anything.
func (r *Record) setRoot(name string, root digest.Digest) bool {
	i := slices.IndexFunc(r.Tags, func(t tag) bool { return t.Name == name })
	if i < 0 || r.Tags[i].Root == root {
		return false
	}
	r.Tags[i].Root = root
	return true
}

// repositoryOf is the repository of a digest reference.
func repositoryOf(reference string) string {
	repository, _, _ := strings.Cut(reference, "@")
	return repository
}

// forgetRoots drops the digest references of a repository that no tag points to any more and nobody
// has pulled by digest: a tag that was pushed again for other platforms. It returns the blobs that
// only they needed. current are the blobs of the image as root names it.
func (r *Record) forgetRoots(repository string, root digest.Digest, current []content.Blob) (garbage []content.Blob) {
	stays := func(reference string) bool {
		return repositoryOf(reference) != repository || slices.Contains(r.ByDigest, reference) || reference == repository+"@"+string(root) ||
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
			return !slices.ContainsFunc(dropped, names) || slices.ContainsFunc(kept, names) // others may need the rest
		}
		return false
	}
	garbage = slices.DeleteFunc(slices.Clone(r.Blobs), needed)
	r.Blobs = slices.DeleteFunc(r.Blobs, func(b content.Blob) bool { return !needed(b) })
	return garbage
}

// Keys are the data keys that the image consists of.
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

// Stack returns the lower directories of an overlay, relative to layers/, topmost first, at least
// one. A layer that occurs twice counts where it is topmost, overlayfs refuses it twice and all
// that is in it lower down is hidden by itself; below a layer with an opaque root nothing is seen.
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

func (r *Record) hasTag(name string) bool {
	return slices.ContainsFunc(r.Tags, func(t tag) bool { return t.Name == name })
}

func (r *Record) withoutTag(name string) *Record {
	c := *r
	c.Tags = slices.DeleteFunc(slices.Clone(r.Tags), func(t tag) bool { return t.Name == name })
	return &c
}

// Image is one image as the CRI shows it.
type Image struct {
	ID          string        // "sha256:" and the hex digest of the config; the same string in every API
	RepoTags    []string      // fully qualified ("docker.io/library/busybox:1"), sorted; empty after a pull by digest
	RepoDigests []string      // fully qualified ("registry.k8s.io/pause@sha256:..."), sorted
	Size        int64         // compressed bytes of this platform's manifest, config and layers; > 0
	Config      ocispec.Image // the image's config; its maps and slices are shared and must not be changed
	Pinned      bool          // one of its names fits one given to SetPinned
}
