package pull

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
)

// Anyone who may create pods can run their own registry, and can read digests of images that they
// may not pull in the status of pods. So a digest in a document does not entitle a pull to use
// local data with that digest. A repository proves in one of these ways that it has a blob:
//
//   - a record lists the blob for an image of the repository, or
//   - another repository of the same registry has sent the blob, and the registry confirms that
//     this repository has it, too, or
//   - the repository sends the whole blob.
//
// In addition, a layer is used only with a blob that was seen to unpack to it (diffIDs), whatever
// the image config says.

// recorded reports whether a record lists the blob for an image that this repository has served.
func (r *resolver) recorded(d digest.Digest) bool {
	from, _ := r.by.catalog.Senders(d)
	return slices.Contains(from, r.ref.Repository())
}

// present reports whether content/ has the blob and this repository has proven to have it, too. It
// deletes a wrong blob.
func (ft *fetcher) present(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	from, known := ft.by.catalog.Senders(desc.Digest)
	from = append(from, ft.by.blobs.Senders(desc.Digest)...)
	if known && !slices.ContainsFunc(from, ft.isOfRegistry) {
		return false, nil
	}
	if ok, err := ft.haveBlob(ctx, desc); !ok || err != nil {
		return false, err
	}
	if slices.Contains(from, ft.ref.Repository()) {
		return true, nil
	}
	if !slices.ContainsFunc(from, ft.isOfRegistry) {
		return false, nil
	}
	ok, err := ft.reg.Has(ctx, desc.Digest)
	if ok {
		err = ft.noteSender(ctx, desc.Digest)
	}
	return ok, err
}

// isOfRegistry reports whether a repository belongs to the registry of this pull.
func (ft *fetcher) isOfRegistry(repository string) bool {
	domain, _, _ := strings.Cut(repository, "/")
	return domain == ft.ref.Domain
}

// noteSender records that the repository has sent the blob, or has proven to have it. If that
// fails, the next pull must prove it again.
func (ft *fetcher) noteSender(ctx context.Context, d digest.Digest) error {
	release, err := ft.by.claim(ctx, ft.prog, content.BlobKey(d))
	if err != nil {
		return err
	}
	defer release()
	if err := ft.by.blobs.AddSender(d, ft.ref.Repository()); err != nil {
		log.G(ctx).WithError(err).WithField("blob", d).Debug("cannot record which repository sent a blob")
	}
	return nil
}

// hash returns the digest of the blob's uncompressed content, without writing any of it.
func (ft *fetcher) hash(ctx context.Context, desc ocispec.Descriptor) (digest.Digest, error) {
	f, err := os.Open(ft.by.blobs.Path(desc.Digest))
	if err != nil {
		return "", err
	}
	defer f.Close()
	name := "checking " + imageref.Short(desc.Digest)
	it := ft.prog.Item(name, 0)
	defer ft.prog.Finish(name)
	return ft.unpacker.Hash(ctx, layers.Source{Reader: f, Size: desc.Size}, desc.Digest, it)
}

// match checks that the blob, which is in content/, unpacks to diffID. If the layer was unpacked
// from another blob, match reads this one only for the check.
func (ft *fetcher) match(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
	got := ft.by.blobs.UnpacksTo(desc.Digest)
	if got == "" {
		if err := ft.prog.Waiting(func() error { return ft.by.unpacks.Acquire(ctx, 1) }); err != nil {
			return err
		}
		defer ft.by.unpacks.Release(1)
		var err error
		if got, err = ft.hash(ctx, desc); err != nil {
			return err
		}
		ft.by.blobs.NoteUnpacked(desc.Digest, got)
	}
	if got != diffID {
		return fault.Refuse(errdefs.ErrDataLoss, "layer unpacks to %s, the image config says %s", got, diffID)
	}
	return nil
}
