package pull

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"
)

// resolver finds the manifest and the config for the reference of a pull.
type resolver struct {
	by   *Puller
	ref  imageref.Target
	reg  *registry.Repository
	prog *progress.Clock
	held *holding
	want platforms.MatchComparer
}

func newResolver(p *pull) *resolver {
	return &resolver{by: p.by, ref: p.ref, reg: p.reg, prog: p.prog, held: p.held,
		want: platforms.Only(platforms.DefaultSpec())}
}

// documents resolves the reference to one manifest and its config.
//
// The platform of an image is the one in the index that names it. If no index says it (the index
// has no platforms, or the reference points to a manifest), the platform is that of the config.
// Among several images of an index that decides which one to use; for a single image a mismatch is
// only logged, because an emulator may run it.
func (r *resolver) documents(ctx context.Context) (contents, error) {
	raw, desc, err := r.root(ctx)
	if err != nil {
		return contents{}, err
	}
	r.by.cfg.Step.Pass("pull.resolved")
	if !r.reg.IsLocal() {
		if err := r.checkSignatures(ctx, desc); err != nil {
			return contents{}, err
		}
	}
	return r.resolve(ctx, contents{root: desc}, raw, desc, 0)
}

const MaxIndexDepth = 3 // nesting of indexes

// otherPlatformError is the error for an image of another platform, in an index without platforms.
type otherPlatformError struct{ platform string }

func (e otherPlatformError) Error() string { return "the image is for " + e.platform }

func (r *resolver) resolve(
	ctx context.Context, got contents, raw []byte, desc ocispec.Descriptor, depth int,
) (contents, error) {
	doc, err := manifest.Decode(raw, desc.MediaType)
	if err != nil {
		return got, err
	}
	if doc.Manifest != nil {
		got.manifest, got.doc = desc, doc.Manifest
		got.config, err = r.config(ctx, doc.Manifest)
		if err == nil {
			err = r.checkPlatform(ctx, got)
		}
		return got, err
	}
	if depth == MaxIndexDepth {
		return got, fault.Refuse(errdefs.ErrResourceExhausted, "indexes nested more than %d deep", MaxIndexDepth)
	}
	entries, err := manifest.Choose(doc.Index, r.want)
	if err != nil {
		return got, err
	}
	return r.firstThatFits(ctx, got, entries, depth+1)
}

// firstThatFits resolves the entries of an index until one matches the platform. Blobs of entries
// that do not match are not recorded for the image.
func (r *resolver) firstThatFits(
	ctx context.Context, got contents, entries []ocispec.Descriptor, depth int,
) (contents, error) {
	var others []string
	for _, entry := range entries {
		before := r.held.noted()
		raw, err := r.document(ctx, entry, "manifests")
		if err != nil {
			return got, err
		}
		found, err := r.resolve(ctx, got, raw, entry, depth)
		var other otherPlatformError
		if !errors.As(err, &other) {
			return found, err
		}
		if !slices.Contains(others, other.platform) {
			others = append(others, other.platform)
		}
		r.held.unnote(before)
	}
	if depth > 1 {
		return got, otherPlatformError{strings.Join(others, ", ")}
	}
	return got, fault.Refuse(errdefs.ErrNotFound, "no image for %s, available: %s",
		platforms.DefaultString(), fault.Clip(strings.Join(others, ", ")))
}

// config downloads and checks the config of a manifest.
func (r *resolver) config(ctx context.Context, m *ocispec.Manifest) (ocispec.Image, error) {
	if err := manifest.Check(m, r.by.cfg.Limits.Layers, r.by.cfg.Limits.ImageBytes); err != nil {
		return ocispec.Image{}, err
	}
	raw, err := r.document(ctx, m.Config, "blobs")
	if err != nil {
		return ocispec.Image{}, err
	}
	return manifest.DecodeConfig(raw, m)
}

// checkPlatform compares the config's platform with that of this machine.
func (r *resolver) checkPlatform(ctx context.Context, got contents) error {
	img := got.config.Platform
	if img.OS == "" || img.Architecture == "" || r.want.Match(platforms.Normalize(img)) {
		return nil
	}
	other := fault.Clip(platforms.Format(img))
	if got.manifest.Digest != got.root.Digest && got.manifest.Platform == nil {
		return otherPlatformError{other}
	}
	log.G(ctx).WithField("image", r.ref.String()).
		Warnf("the image config says that it is for %s; using it for %s", other, platforms.DefaultString())
	return nil
}
