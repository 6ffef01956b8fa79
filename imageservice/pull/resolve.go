package pull

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resolver finds the manifest and the config that the reference of a pull stands for.
type resolver struct {
	by   *Puller
	ref  imageref.Target
	reg  *registry.Repository
	prog *progress.Clock
	held *holding
	want platforms.MatchComparer
}

func newResolver(p *pull) *resolver {
	return &resolver{by: p.by, ref: p.ref, reg: p.reg, prog: &p.prog, held: p.held, want: platforms.Only(platforms.DefaultSpec())}
}

// documents resolves the reference down to one manifest and its config.
//
// The platform of an image is what the index says that names it. Where no index does, because it
// has no platforms or the reference is a manifest's, the config says it: among several images that
// decides, of a single one it is noted only, as an emulator may run it.
func (r *resolver) documents(ctx context.Context) (contents, error) {
	raw, desc, err := r.root(ctx)
	if err != nil {
		return contents{}, err
	}
	r.by.cfg.Step("pull.resolved")
	return r.resolve(ctx, contents{root: desc}, raw, desc, 0)
}

const MaxIndexDepth = 3 // indexes in indexes

// otherPlatformError is for an image of an index without platforms that is not for this machine.
type otherPlatformError struct{ platform string }

func (e otherPlatformError) Error() string { return "the image is for " + e.platform }

func (r *resolver) resolve(ctx context.Context, got contents, raw []byte, desc ocispec.Descriptor, depth int) (contents, error) {
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

// firstThatFits resolves one entry of an index after the other. What was fetched for those that do
// not fit does not belong to the image.
func (r *resolver) firstThatFits(ctx context.Context, got contents, entries []ocispec.Descriptor, depth int) (contents, error) {
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
	return got, fault.Refuse(errdefs.ErrNotFound, "no image for %s, there are: %s", platforms.DefaultString(), fault.Clip(strings.Join(others, ", ")))
}

// config fetches and checks the config of a manifest.
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

// checkPlatform holds the config's platform against this machine's.
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
		Warnf("the image's configuration says that it is for %s; it is taken for %s", other, platforms.DefaultString())
	return nil
}
