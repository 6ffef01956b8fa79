package imageservice

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is what Open needs to know.
type Config struct {
	Root           string        // the daemon's root folder; content/, images/ and layers/ below it are ours
	RegistryConfig string        // folder in the style of containerd's certs.d (<host>/hosts.toml), read at every pull; "" = none
	Limits         Limits        // caps on what a registry can make us store
	StallTimeout   time.Duration // a pull that moves no bytes for so long is cancelled; default 5 min
	MaxDownloads   int           // blobs fetched in parallel by one pull; default 3
	MaxUnpacks     int           // layers unpacked in parallel by all pulls together, and as many more while they arrive; default CPUs, at least 2
	Pinned         []string      // names of images that are reported as pinned, see SetPinned
	Step           func(name string)
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

// Images is the room. All methods may be called at the same time from anywhere.
type Images struct {
	cfg      Config
	content  content.Store
	step     func(string)
	syncfs   func(fd int) error
	unpacks  slots // of blobs that are here: each is given back as soon as our own disk and CPU allow
	alongs   slots // of blobs that are arriving: nobody waits for one
	writer   slots // the one who may change records on disk: held across their fsync, never by readers
	claims   claims
	troubled troubledHosts

	pinNames atomic.Pointer[[]*regexp.Regexp]

	mu       sync.Mutex
	records  map[string]*record              // by image id
	unread   map[string]bool                 // image ids whose record could not be read yet, see unread.go
	names    map[string]string               // tag -> image id
	layers   map[string]*layer               // by layerKey: unpacked and verified, listed in a record or not
	diffIDs  map[digest.Digest]digest.Digest // what blobs that are here were seen to unpack to
	holds    map[string]map[string]bool      // image id -> holders
	pins     map[string]int                  // data keys (see data.go) in use by pulls
	dying    map[string]chan struct{}        // data keys being deleted
	flights  map[string]*flight
	serial   uint64 // of the latest tag
	lastDir  uint64 // of the latest layer directory
	sweeping *time.Timer
}

// layer is an unpacked and verified layer. It is proven to be on disk only when a record lists it.
type layer = layerRecord

// Lookup finds an image by id ("sha256:<hex>", or the hex alone), by tag or digest reference, or by a unique prefix of the id of at least
// four digits; names come before prefixes. Errors: ErrNotFound, or ErrInvalidArgument for what is no reference or an ambiguous prefix.
func (c *Images) Lookup(ref string) (Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.find(ref)
	if err != nil {
		return Image{}, err
	}
	return r.image(c.pinned), nil
}

// find is Lookup under the lock.
func (c *Images) find(ref string) (*record, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if bareID.MatchString(hex) {
		if r := c.records["sha256:"+hex]; r != nil {
			return r, nil
		}
		return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	t, err := parseTarget(ref)
	if err == nil {
		if r := c.named(t); r != nil {
			return r, nil
		}
	}
	if idPrefix.MatchString(hex) {
		r, ambiguous := c.byPrefix("sha256:" + hex)
		if ambiguous {
			return nil, fmt.Errorf("image id prefix %q fits more than one image: %w", ref, errdefs.ErrInvalidArgument)
		}
		if r != nil {
			return r, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

func (c *Images) named(t target) *record {
	if t.digest == "" {
		return c.records[c.names[t.String()]]
	}
	for _, r := range c.records {
		if slices.Contains(r.Digests, t.String()) {
			return r
		}
	}
	return nil
}

func (c *Images) byPrefix(prefix string) (found *record, ambiguous bool) {
	for id, r := range c.records {
		if strings.HasPrefix(id, prefix) {
			if found != nil {
				return nil, true
			}
			found = r
		}
	}
	return found, false
}

// List returns every image, sorted by id. It never waits for a disk or a pull.
func (c *Images) List() []Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Image, 0, len(c.records))
	for _, r := range c.records {
		list = append(list, r.image(c.pinned))
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Hold keeps an image from being removed for as long as holder (a container's id) has it; again is no error. Holds live in memory.
// ErrNotFound when there is no such image.
func (c *Images) Hold(imageID, holder string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records[imageID] == nil && !c.unread[imageID] {
		return fmt.Errorf("image %s: %w", imageID, errdefs.ErrNotFound)
	}
	if c.holds[imageID] == nil {
		c.holds[imageID] = map[string]bool{}
	}
	c.holds[imageID][holder] = true
	return nil
}

// Release undoes Hold. Unknown images and holders are fine.
func (c *Images) Release(imageID, holder string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.holds[imageID], holder)
	if len(c.holds[imageID]) == 0 {
		delete(c.holds, imageID)
	}
}

// knownBlob tells whether a record lists the blob: it was verified and synced. Under the lock.
func (c *Images) knownBlob(d digest.Digest) bool {
	for _, r := range c.records {
		if slices.ContainsFunc(r.Blobs, func(b blob) bool { return b.Digest == d }) {
			return true
		}
	}
	return false
}
