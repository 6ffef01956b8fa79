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
func (p *pull) recorded(d digest.Digest) bool {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	return slices.Contains(p.senders(d), p.repository())
}

// senders returns the repositories whose images consist of the blob, among others. Under the lock.
func (c *Images) senders(d digest.Digest) (repositories []string) {
	for _, r := range c.records {
		if slices.ContainsFunc(r.Blobs, func(b blob) bool { return b.Digest == d }) {
			for _, reference := range r.Digests {
				repositories = append(repositories, repositoryOf(reference))
			}
		}
	}
	return repositories
}

// served tells whether this repository is recorded to have served the root document.
func (p *pull) served(root digest.Digest) bool {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	return p.named(target{domain: p.domain, path: p.path, digest: root}) != nil
}

// pulledBefore tells whether the whole image is recorded under this root document of this repository: nothing of it has to be proven again.
func (p *pull) pulledBefore(got contents) bool {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	r := p.records[got.doc.Config.Digest.String()]
	return r != nil && slices.Contains(r.Digests, p.repository()+"@"+got.root.Digest.String())
}

// present tells whether content/ has the blob and the repository has proven to have it too. What is not whole is deleted.
func (p *pull) present(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	p.Images.mu.Lock()
	known, from := p.knownBlob(desc.Digest), p.senders(desc.Digest)
	p.Images.mu.Unlock()
	from = append(from, readSenders(p.blobPath(desc.Digest))...)
	if known && !slices.ContainsFunc(from, p.isOfRegistry) {
		return false, nil
	}
	if ok, err := p.haveBlob(ctx, desc); !ok || err != nil {
		return false, err
	}
	if slices.Contains(from, p.repository()) {
		return true, nil
	}
	if !slices.ContainsFunc(from, p.isOfRegistry) {
		return false, nil
	}
	ok, err := p.reg.has(ctx, desc.Digest)
	if ok {
		err = p.noteSender(ctx, desc.Digest)
	}
	return ok, err
}

// isOfRegistry tells whether a repository is one of the registry that is asked.
func (p *pull) isOfRegistry(repository string) bool {
	domain, _, _ := strings.Cut(repository, "/")
	return domain == p.domain
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
func (p *pull) noteSender(ctx context.Context, d digest.Digest) error {
	release, err := p.claim(ctx, blobKey(d))
	if err != nil {
		return err
	}
	defer release()
	path := p.blobPath(d)
	all := readSenders(path)
	if slices.Contains(all, p.repository()) {
		return nil
	}
	for all = append(all, p.repository()); len(strings.Join(all, "\n")) > maxSenders; all = all[1:] {
	}
	if err := unix.Lsetxattr(path, senderAttribute, []byte(strings.Join(all, "\n")), 0); err != nil {
		log.G(ctx).WithError(err).WithField("blob", d).Debug("the sender of a blob could not be noted")
	}
	return nil
}

// unpacksTo returns the digest of what a blob was seen to unpack to, "" when it was not seen.
func (c *Images) unpacksTo(d digest.Digest) digest.Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.diffIDs[d]
}

func (c *Images) noteUnpacked(d, diffID digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.diffIDs[d] = diffID
}

// match makes sure that the blob, which is here, unpacks to diffID. Where another blob has become the layer, this one is read for that only.
func (p *pull) match(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
	got := p.unpacksTo(desc.Digest)
	if got == "" {
		if err := p.prog.waiting(func() error { return p.unpacks.take(ctx) }); err != nil {
			return err
		}
		defer p.unpacks.give()
		var err error
		if got, err = p.hashLayer(ctx, desc); err != nil {
			return err
		}
		p.noteUnpacked(desc.Digest, got)
	}
	if got != diffID {
		return refuse(errdefs.ErrDataLoss, "layer unpacks to %s, the image config says %s", got, diffID)
	}
	return nil
}

// hashLayer returns the digest of what the blob unpacks to, without writing any of it.
func (p *pull) hashLayer(ctx context.Context, desc ocispec.Descriptor) (d digest.Digest, err error) {
	defer func() {
		if r := recover(); r != nil { // see newLayer
			log.G(ctx).WithField("layer", desc.Digest).Errorf("panic while unpacking: %v\n%s", r, debug.Stack())
			err = refuse(errdefs.ErrInvalidArgument, "layer %s made the unpacker panic", desc.Digest)
		}
	}()
	f, err := os.Open(p.blobPath(desc.Digest))
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
	it := p.prog.item(name, 0)
	defer p.prog.finish(name)
	read := &meter{src: src, limits: p.cfg.Limits, image: &p.read}
	tarball := &counted{ctx: ctx, r: plain, hash: sha256.New(), meter: read, item: it, prog: &p.prog}
	if _, err := io.Copy(io.Discard, bufio.NewReaderSize(tarball, 256<<10)); err != nil {
		return "", fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return digest.NewDigest(digest.SHA256, tarball.hash), nil
}
