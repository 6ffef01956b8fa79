package imageservice

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Whoever may make pods may run a registry of his own, and knows digests of images that he may not pull: they stand in the status of pods.
// So a digest in a stranger's document is no reason to use what is here under that digest. A repository proves that it has a blob:
//
//   - a record lists the blob for an image of the repository, or
//   - another repository of the same registry has sent us the blob, and the registry says that this one has it too, or
//   - it sends us all of it.
//
// And a layer is used only with a blob that was seen to unpack to it (diffIDs), whatever a configuration says.

// repositoryOf is the repository of a digest reference.
func repositoryOf(reference string) string {
	repository, _, _ := strings.Cut(reference, "@")
	return repository
}

// recorded tells whether a record lists the blob for an image that this repository has served.
func (r *resolver) recorded(d digest.Digest) bool {
	from, _ := r.by.catalog.senders(d)
	return slices.Contains(from, r.ref.repository())
}

// present tells whether content/ has the blob and the repository has proven to have it too. What is not whole is deleted.
func (ft *fetcher) present(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	from, known := ft.by.catalog.senders(desc.Digest)
	from = append(from, readSenders(ft.by.blobs.path(desc.Digest))...)
	if known && !slices.ContainsFunc(from, ft.isOfRegistry) {
		return false, nil
	}
	if ok, err := ft.haveBlob(ctx, desc); !ok || err != nil {
		return false, err
	}
	if slices.Contains(from, ft.ref.repository()) {
		return true, nil
	}
	if !slices.ContainsFunc(from, ft.isOfRegistry) {
		return false, nil
	}
	ok, err := ft.reg.has(ctx, desc.Digest)
	if ok {
		err = ft.noteSender(ctx, desc.Digest)
	}
	return ok, err
}

// isOfRegistry tells whether a repository is one of the registry that is asked.
func (ft *fetcher) isOfRegistry(repository string) bool {
	domain, _, _ := strings.Cut(repository, "/")
	return domain == ft.ref.domain
}

// senderAttribute is where the file of a blob says who has sent it, a repository a line. Records say so too, but a blob may belong to a
// pull that failed, or that a restart has interrupted. A blob without it is fetched again.
const senderAttribute = "trusted.cribox.from"

const maxSenders = 2 << 10 // bytes of the attribute

func readSenders(path string) []string {
	b := make([]byte, maxSenders)
	n, err := unix.Lgetxattr(path, senderAttribute, b)
	if err != nil {
		return nil
	}
	return strings.Split(string(b[:n]), "\n")
}

// noteSender remembers that the repository has sent the blob, or has proven to have it. Where that is not possible, it has to be proven again.
func (ft *fetcher) noteSender(ctx context.Context, d digest.Digest) error {
	release, err := ft.by.claim(ctx, ft.prog, blobKey(d))
	if err != nil {
		return err
	}
	defer release()
	path := ft.by.blobs.path(d)
	all := readSenders(path)
	if slices.Contains(all, ft.ref.repository()) {
		return nil
	}
	for all = append(all, ft.ref.repository()); len(strings.Join(all, "\n")) > maxSenders; all = all[1:] {
	}
	if err := unix.Lsetxattr(path, senderAttribute, []byte(strings.Join(all, "\n")), 0); err != nil {
		log.G(ctx).WithError(err).WithField("blob", d).Debug("the sender of a blob could not be noted")
	}
	return nil
}

// match makes sure that the blob, which is here, unpacks to diffID. Where another blob has become the layer, this one is read for that only.
func (ft *fetcher) match(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
	got := ft.by.blobs.unpacksTo(desc.Digest)
	if got == "" {
		if err := ft.prog.waiting(func() error { return ft.by.unpacks.Acquire(ctx, 1) }); err != nil {
			return err
		}
		defer ft.by.unpacks.Release(1)
		var err error
		if got, err = ft.hashLayer(ctx, desc); err != nil {
			return err
		}
		ft.by.blobs.noteUnpacked(desc.Digest, got)
	}
	if got != diffID {
		return refuse(errdefs.ErrDataLoss, "layer unpacks to %s, the image config says %s", got, diffID)
	}
	return nil
}

// hashLayer returns the digest of what the blob unpacks to, without writing any of it.
func (ft *fetcher) hashLayer(ctx context.Context, desc ocispec.Descriptor) (d digest.Digest, err error) {
	defer func() {
		if r := recover(); r != nil { // see newLayer
			log.G(ctx).WithField("layer", desc.Digest).Errorf("panic while unpacking: %v\n%s", r, debug.Stack())
			err = refuse(errdefs.ErrInvalidArgument, "layer %s made the unpacker panic", desc.Digest)
		}
	}()
	f, err := os.Open(ft.by.blobs.path(desc.Digest))
	if err != nil {
		return "", err
	}
	defer f.Close()
	src := source{Reader: f, size: desc.Size}
	plain, closer, err := decompress(src)
	if err != nil {
		return "", err
	}
	defer closer()
	name := "checking " + short(desc.Digest)
	it := ft.prog.item(name, 0)
	defer ft.prog.finish(name)
	read := &meter{src: src, limits: ft.by.cfg.Limits, image: &ft.read}
	tarball := &counted{ctx: ctx, r: plain, hash: sha256.New(), meter: read, item: it, prog: ft.prog}
	if _, err := io.Copy(io.Discard, bufio.NewReaderSize(tarball, 256<<10)); err != nil {
		return "", fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return digest.NewDigest(digest.SHA256, tarball.hash), nil
}
