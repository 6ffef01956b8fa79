package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/keyring"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/pull"
	"github.com/cribox/cribox/imageservice/registry"
	"github.com/cribox/cribox/imageservice/signature"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Open takes ownership of content/, images/ and layers/ in c.Root and recovers them. It lists every
// image with a valid record. A damaged record is logged and renamed to *.torn; only its image is
// lost. A record that cannot be read now is tried again later (catalog/load.go). Layers without a
// record are deleted. Partial downloads are kept for the next pull.
func Open(ctx context.Context, c Config) (*Images, error) {
	if c.Root == "" || !filepath.IsAbs(c.Root) {
		return nil, fmt.Errorf("open image service: root folder %q is not absolute", c.Root)
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
	if c.syncfs == nil {
		c.syncfs = unix.Syncfs
	}
	c.Limits = c.Limits.WithDefaults()
	if err := makeFolders(c.Root); err != nil {
		return nil, fmt.Errorf("open image service: %w", err)
	}
	blobs, err := content.OpenBlobs(filepath.Join(c.Root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open image service: %w", err)
	}
	s := assemble(c, blobs)
	s.SetPinned(c.Pinned)
	s.readPins(ctx)
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("open image service: %w", err)
	}
	c.Step.Pass("open.recovered")
	return s, nil
}

// assemble connects the parts. c has all defaults set.
func assemble(c Config, blobs *content.Blobs) *Images {
	pins, store := content.NewPins(), layers.NewStore(LayersFolder(c.Root), c.Step)
	catalog := catalog.New(filepath.Join(c.Root, "images"), c.Step, blobs, store, pins)
	garbage := garbage.New(catalog, blobs, store, pins, c.Step)
	client := registry.NewClient(filepath.SplitList(c.RegistryConfig), c.StallTimeout,
		keyring.New(c.Credentials, c.HelpersDir))
	puller := pull.New(pull.Config{
		Root: c.Root, Client: client, Policy: signature.Open(c.SignaturePolicy), Limits: c.Limits,
		StallTimeout: c.StallTimeout,
		MaxDownloads: c.MaxDownloads, MaxUnpacks: c.MaxUnpacks, Step: c.Step, Syncfs: c.syncfs, Activity: c.Activity,
	}, garbage)
	return &Images{cfg: c, catalog: catalog, blobs: blobs, layers: store, garbage: garbage, puller: puller}
}

// LayersFolder is where the layers of images are unpacked.
func LayersFolder(root string) string { return filepath.Join(root, "layers") }

// makeFolders creates missing folders. Mode 0700 keeps users of the node away from setuid files of
// images.
func makeFolders(root string) error {
	for _, d := range []string{"", "content", "images", "layers", "layers/empty", "layers/none"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			return err
		}
	}
	for d, mode := range map[string]os.FileMode{"content": 0o700, "images": 0o700, "layers": 0o700, "layers/empty": 0o755,
		"layers/none": 0o755} {
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

func (s *Images) recover(ctx context.Context) error {
	s.blobs.DropBroken(ctx)
	if err := os.MkdirAll(filepath.Join(s.blobs.Dir, "ingest"), 0o700); err != nil {
		return err
	}
	if err := s.catalog.Load(ctx); err != nil {
		return err
	}
	if err := s.garbage.DropOrphanLayers(ctx); err != nil {
		return err
	}
	s.garbage.SweepLater(garbage.DebrisRetention)
	return nil
}
