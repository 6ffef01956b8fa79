package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// ingestRef names a partial download in the content store. It is its registry's own: what one registry has begun, another need not wait for,
// and cannot spoil.
func (t target) ingestRef(d digest.Digest) string { return t.domain + " " + string(d) }

// documentPrefix begins the name of a document that is being written.
const documentPrefix = "document "

// fetcher brings the layers of one pull here.
type fetcher struct {
	by        *puller
	ref       target
	reg       *registry
	prog      *progress
	held      *holding
	downloads *semaphore.Weighted
	proved    bool // the whole image is recorded for this repository

	looks         int    // into layers, for directories that were made up
	read, written budget // by the unpackers: bytes of tars, and of files, whose holes are in no tar
}

func newFetcher(p *pull, proved bool) *fetcher {
	ft := &fetcher{by: p.by, ref: p.ref, reg: p.reg, prog: &p.prog, held: p.held, proved: proved,
		downloads: semaphore.NewWeighted(int64(p.by.cfg.MaxDownloads))}
	ft.read.most, ft.written.most = p.by.cfg.Limits.ImageBytes, p.by.cfg.Limits.ImageBytes
	return ft
}

// layer brings one layer here: its blob into content/ and its files into layers/, at the same time where there is a free unpacker.
func (ft *fetcher) layer(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, name string) (*layer, error) {
	for _, key := range []string{blobKey(desc.Digest), partialPrefix + ft.ref.ingestRef(desc.Digest), layerPrefix + string(diffID)} {
		if err := ft.held.pin(ctx, key); err != nil {
			return nil, err
		}
	}
	ft.held.note(desc)
	if err := ft.fetch(ctx, desc, diffID, name); err != nil {
		if errdefs.IsNotFound(err) && foreignLayer(desc) {
			err = fmt.Errorf("%w (it is a foreign layer, and its own urls are not asked: push it to the registry)", err)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l := ft.by.layers.any(diffID)
	if l == nil || ft.held.pin(ctx, layerPrefix+l.key()) != nil || ft.by.layers.byKey(l.key()) != l {
		var err error
		if l, err = ft.unpackBlob(ctx, desc, diffID, nil); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if !ft.proved {
		if err := ft.match(ctx, desc, diffID); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return l, nil
}

// fetch returns when the blob is in content/. On the way it may have unpacked the layer, too. It waits for other pulls from the same registry
// only: how fast somebody else's registry is must not matter.
func (ft *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, name string) error {
	release, err := ft.by.claim(ctx, ft.prog, partialPrefix+ft.ref.ingestRef(desc.Digest))
	if err != nil {
		return err
	}
	defer release()
	if ok, err := ft.present(ctx, desc); ok || err != nil {
		return err
	}
	if err := ft.prog.waiting(func() error { return ft.downloads.Acquire(ctx, 1) }); err != nil {
		return err
	}
	defer ft.downloads.Release(1)
	it := ft.prog.item(name, desc.Size)
	defer ft.prog.finish(name)
	along := ft.unpackAlong(ctx, desc, diffID)
	if err = ft.download(ctx, desc, it, along); err == nil {
		err = ft.noteSender(ctx, desc.Digest)
	}
	return along.end(err)
}

// haveBlob tells whether content/ has the blob. One that no record vouches for is hashed first; what is wrong is deleted. The claim keeps
// what another registry has brought meanwhile from being deleted in place of what was wrong.
func (ft *fetcher) haveBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	release, err := ft.by.claim(ctx, ft.prog, blobKey(desc.Digest))
	if err != nil {
		return false, err
	}
	defer release()
	f, err := os.Open(ft.by.blobs.path(desc.Digest))
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, known := ft.by.catalog.senders(desc.Digest)
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() == desc.Size {
		if known {
			return true, nil
		}
		check := digest.SHA256.Digester()
		if _, err := io.Copy(check.Hash(), &noticed{ctx, f, ft.prog}); err != nil {
			return false, err
		}
		if check.Digest() == desc.Digest {
			return true, nil
		}
	} else if known {
		// The blob is verified, so it is the descriptor that lies.
		return false, refuse(errdefs.ErrDataLoss, "%s has %d bytes, its descriptor says %d", desc.Digest, info.Size(), desc.Size)
	}
	return false, ft.by.blobs.delete(ctx, desc.Digest)
}

// noticed is a reader that counts as progress and ends with the context.
type noticed struct {
	ctx  context.Context
	r    io.Reader
	prog *progress
}

func (n *noticed) Read(b []byte) (int, error) {
	if n.ctx.Err() != nil {
		return 0, context.Cause(n.ctx)
	}
	c, err := n.r.Read(b)
	n.prog.moved.Add(int64(c))
	return c, err
}

// unpackBlob unpacks a layer whose blob is here, or waits for whoever does.
func (ft *fetcher) unpackBlob(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, fixes []fix) (*layer, error) {
	key := layerPrefix + layerKey(diffID, fixesKey(fixes))
	if err := ft.held.pin(ctx, key); err != nil {
		return nil, err
	}
	release, err := ft.by.claim(ctx, ft.prog, key)
	if err != nil {
		return nil, err
	}
	defer release()
	if l := ft.by.layers.byKey(strings.TrimPrefix(key, layerPrefix)); l != nil {
		return l, nil
	}
	if err := ft.prog.waiting(func() error { return ft.by.unpacks.Acquire(ctx, 1) }); err != nil {
		return nil, err
	}
	defer ft.by.unpacks.Release(1)
	f, err := os.Open(ft.by.blobs.path(desc.Digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name := "unpacking " + short(diffID)
	it := ft.prog.item(name, 0)
	defer ft.prog.finish(name)
	l, err := ft.newLayer(ctx, source{Reader: f, size: desc.Size}, diffID, fixes, it)
	if err != nil {
		return nil, err
	}
	ft.by.blobs.noteUnpacked(desc.Digest, diffID)
	return ft.by.layers.add(l), nil
}

// download fetches a blob into content/, from where an earlier attempt stopped. It may be there already: then its bytes are the proof that the
// repository has it.
func (ft *fetcher) download(ctx context.Context, desc ocispec.Descriptor, it *item, along *alongside) error {
	var w content.Writer
	err := ft.prog.waiting(func() (err error) { // it hashes what is there
		w, err = content.OpenWriter(ctx, ft.by.blobs.store, content.WithRef(ft.ref.ingestRef(desc.Digest)), content.WithDescriptor(ocispec.Descriptor{Size: desc.Size}))
		return err
	})
	if err != nil {
		return fmt.Errorf("open blob %s: %w", desc.Digest, diskError(err))
	}
	defer w.Close()
	status, err := w.Status()
	if err != nil {
		return err
	}
	d := &transfer{ft: ft, desc: desc, w: w, offset: status.Offset, item: it, along: along}
	d.pieces = d.offset > 0
	if d.offset == desc.Size { // nothing is left to ask for, and another repository may have sent it
		ok, err := ft.reg.has(ctx, desc.Digest)
		if err != nil {
			return err
		}
		if !ok {
			d.offset++
		}
	}
	if d.offset > desc.Size {
		if err := d.restart(); err != nil {
			return err
		}
	}
	along.advance(d.offset)
	err = d.run(ctx)
	var wrong contentError
	if errors.As(err, &wrong) {
		w.Close()
		return errors.Join(err, ft.by.blobs.abort(context.WithoutCancel(ctx), ft.ref.ingestRef(desc.Digest)))
	}
	if err == nil {
		ft.by.cfg.Step("pull.blob.written")
	}
	return err
}
