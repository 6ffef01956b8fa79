package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Open takes possession of content/, images/ and layers/ below c.Root and recovers: every record that proves itself is listed again, one
// that does not is renamed to *.torn and logged and costs that image only, one that cannot be read now is tried again (unread.go); layers without a record are deleted. Partial downloads stay for the next try.
func Open(ctx context.Context, c Config) (*Images, error) {
	if c.Root == "" || !filepath.IsAbs(c.Root) {
		return nil, fmt.Errorf("open image service: root folder %q is not absolute", c.Root)
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	if c.StallTimeout <= 0 {
		c.StallTimeout = 5 * time.Minute
	}
	if c.MaxDownloads <= 0 {
		c.MaxDownloads = 3
	}
	if c.MaxUnpacks <= 0 {
		c.MaxUnpacks = max(2, runtime.NumCPU())
	}
	c.Limits = c.Limits.withDefaults()
	if err := makeFolders(c.Root); err != nil {
		return nil, fmt.Errorf("open image service: %w", err)
	}
	store, err := newStore(filepath.Join(c.Root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open image service: %w", err)
	}
	s := &Images{
		cfg: c, content: store, step: c.Step, syncfs: unix.Syncfs,
		unpacks: make(slots, c.MaxUnpacks), alongs: make(slots, c.MaxUnpacks), writer: make(slots, 1),
		records: map[string]*record{}, unread: map[string]bool{}, names: map[string]string{}, layers: map[string]*layer{}, holds: map[string]map[string]bool{},
		diffIDs: map[digest.Digest]digest.Digest{}, pins: map[string]int{}, dying: map[string]chan struct{}{}, flights: map[string]*flight{},
	}
	s.SetPinned(c.Pinned)
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("open image service: %w", err)
	}
	s.step("open.recovered")
	return s, nil
}

// newStore opens the content store without its warning that the file system has no fs-verity, which few have and nobody misses.
func newStore(path string) (content.Store, error) {
	level := log.L.Logger.GetLevel()
	log.L.Logger.SetLevel(min(level, logrus.ErrorLevel))
	defer log.L.Logger.SetLevel(level)
	return local.NewStore(path)
}

// makeFolders creates what is missing. 0700 keeps the setuid files of images away from the node's users.
func makeFolders(root string) error {
	for _, d := range []string{"", "content", "images", "layers", "layers/empty", "layers/none"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			return err
		}
	}
	for d, mode := range map[string]os.FileMode{"content": 0o700, "images": 0o700, "layers": 0o700, "layers/empty": 0o755, "layers/none": 0o755} {
		if err := os.Chmod(filepath.Join(root, d), mode); err != nil {
			return err
		}
	}
	layout := filepath.Join(root, "content", ocispec.ImageLayoutFile)
	want, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(layout); err == nil && string(have) == string(want) {
		return nil
	}
	return os.WriteFile(layout, want, 0o600)
}

func (c *Images) recover(ctx context.Context) error {
	c.dropBrokenDownloads(ctx)
	if err := os.MkdirAll(filepath.Join(c.cfg.Root, "content", "ingest"), 0o700); err != nil {
		return err
	}
	if err := c.loadRecords(ctx); err != nil {
		return err
	}
	c.settleTags(ctx)
	if err := c.dropOrphanLayers(ctx); err != nil {
		return err
	}
	c.sweepLater(debrisRetention)
	return nil
}

// dropBrokenDownloads deletes what is below ingest/ and is no partial download. The others are gone on with, or swept when nobody does.
func (c *Images) dropBrokenDownloads(ctx context.Context) {
	dir := filepath.Join(c.cfg.Root, "content", "ingest")
	entries, _ := os.ReadDir(dir) // it is made when it is missing
	for _, e := range entries {
		ref, err := readCapped(filepath.Join(dir, e.Name(), "ref"), maxName)
		if err != nil && !damaged(err) {
			log.G(ctx).WithError(err).WithField("download", e.Name()).Warn("partial download cannot be read now; it stays for a while")
			continue
		}
		if err == nil && digest.FromBytes(ref).Encoded() == e.Name() && !strings.HasPrefix(string(ref), documentPrefix) {
			continue
		}
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			log.G(ctx).WithError(err).WithField("download", e.Name()).Warn("partial download could not be deleted")
		}
	}
}

func (c *Images) loadRecords(ctx context.Context) error {
	dir := filepath.Join(c.cfg.Root, "images")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".torn":
			continue
		case ".tmp":
			os.Remove(path)
			continue
		}
		r, err := c.loadRecord(path, "sha256:"+e.Name())
		if errors.Is(err, errNewer) {
			return fmt.Errorf("image record %s: %w", e.Name(), err)
		}
		if err != nil && !damaged(err) {
			log.G(ctx).WithError(err).WithField("image", e.Name()).Error("image record cannot be read now and is not listed; will be tried again, and no image data is deleted until then")
			c.unread["sha256:"+e.Name()] = true
			continue
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", e.Name()).Error("image record is not to be believed; set aside as *.torn, pull the image again")
			if err := os.Rename(path, path+".torn"); err != nil {
				log.G(ctx).WithError(err).WithField("image", e.Name()).Warn("image record could not be renamed")
			}
			continue
		}
		c.remember(r)
	}
	return nil
}

// remember puts a record into memory; its tags come after that. Under the lock, or while nobody else is there.
func (c *Images) remember(r *record) {
	c.records[r.ID] = r
	for i := range r.Layers {
		c.layers[r.Layers[i].key()] = &r.Layers[i]
	}
	for _, b := range r.Blobs {
		if b.DiffID != "" {
			c.diffIDs[b.Digest] = b.DiffID
		}
	}
}

// loadRecord reads one record and checks that what it lists is there: the config down to its hash, blobs by size, layers by existence.
func (c *Images) loadRecord(path, id string) (*record, error) {
	b, err := readCapped(path, 4*maxDocument)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b, id)
	if err != nil {
		return nil, err
	}
	for _, b := range r.Blobs {
		info, err := os.Lstat(c.blobPath(b.Digest))
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() || info.Size() != b.Size {
			return nil, fmt.Errorf("blob %s has %d bytes, not %d", b.Digest, info.Size(), b.Size)
		}
	}
	for _, l := range r.Layers {
		if info, err := os.Lstat(filepath.Join(c.layerDir(l.Dir), "fs")); err != nil {
			return nil, err
		} else if !info.IsDir() {
			return nil, fmt.Errorf("layer %s is not a directory", l.Dir)
		} else if err := openRoot(filepath.Join(c.layerDir(l.Dir), "fs"), info); err != nil {
			return nil, err
		}
	}
	config, err := c.readDocument(digest.Digest(id))
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal(config, &r.config)
}

// openRoot gives the root of a layer that an older version unpacked the mode that it has now, see rootMode.
func openRoot(path string, info os.FileInfo) error {
	if info.Mode()&rootMode == rootMode {
		return nil
	}
	return os.Chmod(path, info.Mode()|rootMode)
}

// damaged says whether what cannot be read can never be read again. A failing disk or a lack of descriptors is something else, and so is a
// record of a newer version: nothing may be concluded from them, or the layers below running containers would be taken for orphans.
func damaged(err error) bool {
	var errno unix.Errno
	if errors.Is(err, errNewer) {
		return false
	}
	return !errors.As(err, &errno) || errno == unix.ENOENT || errno == unix.ENOTDIR || errno == unix.EISDIR
}

// settleTags gives each tag to the record with the latest claim and corrects the loser's file, so that the tag does not come back when
// the winner is removed.
func (c *Images) settleTags(ctx context.Context) {
	type claim struct {
		id     string
		serial uint64
	}
	best := map[string]claim{}
	for id, r := range c.records {
		for _, t := range r.Tags {
			c.serial = max(c.serial, t.Serial)
			if b, ok := best[t.Name]; !ok || t.Serial > b.serial {
				best[t.Name] = claim{id, t.Serial}
			}
		}
	}
	for name, b := range best {
		c.names[name] = b.id
		for id, r := range c.records {
			if id != b.id && r.hasTag(name) {
				c.records[id] = r.withoutTag(name)
				if err := c.writeRecord(c.records[id]); err != nil {
					log.G(ctx).WithError(err).WithField("image", id).Warn("record of the image that lost its tag is not rewritten")
				}
			}
		}
	}
}

// dropOrphanLayers deletes the directories no record lists: they were never proven to be on disk. What is mounted stays all the same: a
// container runs on it although its image's record is damaged.
func (c *Images) dropOrphanLayers(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(c.cfg.Root, "layers"))
	if err != nil {
		return err
	}
	known := map[string]bool{"empty": true, "none": true}
	for _, r := range c.records {
		for _, l := range r.Layers {
			known[l.Dir] = true
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return err
	}
	mounted := func(dir string) bool {
		return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
			return showsLayer(m.VFSOptions, filepath.Join(c.layerDir(dir), "fs"))
		})
	}
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			c.lastDir = max(c.lastDir, n)
		}
		if known[e.Name()] || len(c.unread) > 0 || mounted(e.Name()) {
			continue
		}
		if err := removeTree(c.layerDir(e.Name())); err != nil {
			log.G(ctx).WithError(err).WithField("layer", e.Name()).Warn("orphan layer could not be deleted")
		}
	}
	return nil
}

// showsLayer says whether the options of an overlay name a layer: by its path, or as mount(2) had it on an old kernel, relative to layers/.
// Of the latter, one of another root is taken for ours: a layer too many costs disk only.
func showsLayer(options, layer string) bool {
	relative := filepath.Join(filepath.Base(filepath.Dir(layer)), filepath.Base(layer))
	parts := ":" + strings.NewReplacer("=", ":", ",", ":").Replace(options) + ":"
	return strings.Contains(options, layer) || strings.Contains(parts, ":"+relative+":")
}

func readCapped(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, errors.New(filepath.Base(path) + " is not a file of a sane size")
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		err = nil
	}
	return b, err
}

func (c *Images) blobPath(d digest.Digest) string {
	return filepath.Join(c.cfg.Root, "content", "blobs", "sha256", strings.TrimPrefix(string(d), "sha256:"))
}

// readDocument reads a manifest, index or config from content/ and verifies it on the way.
func (c *Images) readDocument(d digest.Digest) ([]byte, error) {
	b, err := readCapped(c.blobPath(d), maxDocument)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(b); got != d {
		return nil, fmt.Errorf("blob %s on disk has digest %s", d, got)
	}
	return b, nil
}
