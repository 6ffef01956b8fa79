package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"
	"github.com/cribox/cribox/internal/activity"
)

// fetcher downloads and unpacks the layers of one pull.
type fetcher struct {
	by        *Puller
	ref       imageref.Target
	reg       *registry.Repository
	prog      *progress.Clock
	held      *holding
	downloads *semaphore.Weighted
	proved    bool // a record of this repository lists the whole image
	unpacker  *layers.Unpacker
}

func newFetcher(p *pull, proved bool) *fetcher {
	return &fetcher{by: p.by, ref: p.ref, reg: p.reg, prog: p.prog, held: p.held, proved: proved,
		downloads: semaphore.NewWeighted(int64(p.by.cfg.MaxDownloads)),
		unpacker:  layers.NewUnpacker(p.by.layers, p.by.cfg.Limits, p.prog)}
}

// layer downloads the blob of a layer to content/ and unpacks it to layers/, both at the same time
// if an unpacker is free.
func (ft *fetcher) layer(
	ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, name string,
) (*layers.Layer, error) {
	for _, key := range []string{content.BlobKey(desc.Digest), content.PartialPrefix + ft.ref.IngestRef(desc.Digest),
		content.LayerPrefix + string(diffID)} {
		if err := ft.held.pin(ctx, key); err != nil {
			return nil, err
		}
	}
	ft.held.note(desc)
	if err := ft.fetch(ctx, desc, diffID, name); err != nil {
		if errdefs.IsNotFound(err) && manifest.IsForeign(desc) {
			err = fmt.Errorf("%w (it is a foreign layer, and cribox does not fetch from its urls: push it to the registry)", err)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l := ft.by.layers.Any(diffID)
	if l == nil || ft.held.pin(ctx, content.LayerPrefix+l.Key()) != nil || ft.by.layers.ByKey(l.Key()) != l {
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

// fetch downloads the blob to content/, and may unpack the layer at the same time. It waits only
// for pulls from the same registry, so that a slow registry does not delay pulls from others.
func (ft *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, name string) error {
	release, err := ft.by.claim(ctx, ft.prog, content.PartialPrefix+ft.ref.IngestRef(desc.Digest))
	if err != nil {
		return err
	}
	defer release()
	if ok, err := ft.present(ctx, desc); ok || err != nil {
		return err
	}
	err = activity.Wait(ctx, name+": waiting for other downloads of this pull", func(ctx context.Context) error {
		return ft.prog.Waiting(func() error { return ft.downloads.Acquire(ctx, 1) })
	})
	if err != nil {
		return err
	}
	defer ft.downloads.Release(1)
	it := ft.prog.Item(name, desc.Size)
	defer ft.prog.Finish(name)
	along := ft.unpackAlong(ctx, desc, diffID)
	err = activity.Do(ctx, name+": downloading", func(ctx context.Context) error {
		return ft.download(ctx, desc, it, along)
	})
	if err == nil {
		err = ft.noteSender(ctx, desc.Digest)
	}
	return activity.Do(ctx, name+": unpacking", func(context.Context) error { return along.end(err) })
}

// haveBlob reports whether content/ has the blob. It hashes a blob that no record lists, and
// deletes it if it is wrong. It holds the blob's claim, so that it cannot delete a correct blob
// that another registry's download has put there meanwhile.
func (ft *fetcher) haveBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	release, err := ft.by.claim(ctx, ft.prog, content.BlobKey(desc.Digest))
	if err != nil {
		return false, err
	}
	defer release()
	if ft.by.blobs.Doubted(desc.Digest) {
		return false, nil
	}
	f, err := os.Open(ft.by.blobs.Path(desc.Digest))
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, known := ft.by.catalog.Senders(desc.Digest)
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() == desc.Size {
		if known {
			return true, nil
		}
		content.ReadFromDisk(f)
		check := digest.SHA256.Digester()
		if _, err := io.Copy(check.Hash(), &noticed{ctx, f, ft.prog}); err != nil {
			return false, err
		}
		if check.Digest() == desc.Digest {
			return true, nil
		}
	} else if known {
		// The blob was verified, so the descriptor is wrong.
		return false, fault.Refuse(errdefs.ErrDataLoss, "%s has %d bytes, but its descriptor says %d",
			desc.Digest, info.Size(), desc.Size)
	}
	return false, ft.by.blobs.Delete(desc.Digest)
}

// noticed is a reader that counts as progress and ends with the context.
type noticed struct {
	ctx  context.Context
	r    io.Reader
	prog *progress.Clock
}

func (n *noticed) Read(b []byte) (int, error) {
	if n.ctx.Err() != nil {
		return 0, context.Cause(n.ctx)
	}
	c, err := n.r.Read(b)
	n.prog.Moved.Add(int64(c))
	return c, err
}

// unpackBlob unpacks a layer whose blob is in content/. If another pull is unpacking it, it waits
// for that one.
func (ft *fetcher) unpackBlob(
	ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, fixes []layers.Fix,
) (*layers.Layer, error) {
	key := content.LayerPrefix + layers.KeyOf(diffID, layers.FixesKey(fixes))
	if err := ft.held.pin(ctx, key); err != nil {
		return nil, err
	}
	release, err := ft.by.claim(ctx, ft.prog, key)
	if err != nil {
		return nil, err
	}
	defer release()
	if l := ft.by.layers.ByKey(strings.TrimPrefix(key, content.LayerPrefix)); l != nil {
		return l, nil
	}
	err = activity.Wait(ctx, "waiting for other layers to be unpacked", func(ctx context.Context) error {
		return ft.prog.Waiting(func() error { return ft.by.unpacks.Acquire(ctx, 1) })
	})
	if err != nil {
		return nil, err
	}
	defer ft.by.unpacks.Release(1)
	f, err := os.Open(ft.by.blobs.Path(desc.Digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name := "unpacking " + imageref.Short(diffID)
	it := ft.prog.Item(name, 0)
	defer ft.prog.Finish(name)
	var l *layers.Layer
	err = activity.Do(ctx, name, func(ctx context.Context) (err error) {
		l, err = ft.unpacker.Unpack(ctx, layers.Source{Reader: f, Size: desc.Size}, diffID, fixes, it)
		return err
	})
	if err != nil {
		return nil, err
	}
	ft.by.blobs.NoteUnpacked(desc.Digest, diffID)
	return ft.by.layers.Add(l), nil
}

// download downloads a blob to content/, and resumes an earlier attempt. If content/ already has
// the blob, the download only proves that this repository has it, too.
func (ft *fetcher) download(ctx context.Context, desc ocispec.Descriptor, it *progress.Item, along *alongside) error {
	var w *content.Writer
	err := ft.prog.Waiting(func() (err error) { // it hashes the bytes that are already there
		w, err = ft.by.blobs.OpenWriter(ft.ref.IngestRef(desc.Digest))
		return err
	})
	if err != nil {
		return fmt.Errorf("open blob %s: %w", desc.Digest, fault.Disk(err))
	}
	defer w.Close()
	d := &transfer{ft: ft, desc: desc, w: w, offset: w.Size(), item: it, along: along}
	d.pieces = d.offset > 0
	if d.offset == desc.Size { // the partial file is complete, but another repository may have sent it
		ok, err := ft.reg.Has(ctx, desc.Digest)
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
	if fault.IsRefused(err) {
		w.Close()
		return errors.Join(err, ft.by.blobs.Abort(ft.ref.IngestRef(desc.Digest)))
	}
	if err == nil {
		ft.by.cfg.Step.Pass("pull.blob.written")
	}
	return err
}

// fixLayers applies the metadata of implied directories to all layers, bottom up (see
// layers/link.go).
func (ft *fetcher) fixLayers(ctx context.Context, got *contents) error {
	var total uint64
	var below []*layers.Layer // topmost first
	for i, l := range got.layers {
		if total += l.Bytes; total > uint64(ft.by.cfg.Limits.ImageBytes) {
			return fault.Refuse(errdefs.ErrResourceExhausted, "image unpacks to more than %d bytes (image_size_max)",
				ft.by.cfg.Limits.ImageBytes)
		}
		fixes, err := ft.unpacker.FixesOf(ctx, l, below)
		if err != nil {
			return err
		}
		if l.Fixes != layers.FixesKey(fixes) {
			if l, err = ft.unpackBlob(ctx, got.doc.Layers[i], l.DiffID, fixes); err != nil {
				return err
			}
			got.layers[i] = l
		}
		below = slices.Insert(below, 0, l)
	}
	return nil
}
