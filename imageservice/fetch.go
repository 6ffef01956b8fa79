package imageservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ingestRef names a partial download in the content store. It is its registry's own: what one registry has begun, another need not wait for,
// and cannot spoil.
func (t target) ingestRef(d digest.Digest) string { return t.domain + " " + string(d) }

// documentPrefix begins the name of a document that is being written.
const documentPrefix = "document "

// ingestFile is where the content store keeps the bytes of a partial download.
func (c *Images) ingestFile(ref string) string {
	return filepath.Join(c.cfg.Root, "content", "ingest", digest.FromString(ref).Encoded(), "data")
}

// root asks the registry what the reference points to. Where this repository has served what a HEAD answers, that will do: it is cheap, it
// still proves that the caller may have the image, and Docker Hub does not count it.
func (p *pull) root(ctx context.Context) ([]byte, ocispec.Descriptor, error) {
	q := request{method: http.MethodGet, kind: "manifests", object: p.object(), accept: acceptManifests, resolve: p.target.digest == ""}
	if p.maybeKnown() {
		head := q
		head.method = http.MethodHead
		resp, err := p.reg.do(ctx, head)
		if err == nil {
			resp.Body.Close()
			if raw, ok := p.unchanged(ctx, resp.Header); ok {
				desc := descriptorOf(raw, contentType(resp.Header))
				if _, err := decodeDocument(raw, desc.MediaType); err == nil { // else the HEAD says too little of what it is
					p.note(desc)
					return raw, desc, nil
				}
			}
		} else if !noHead(err) {
			return nil, ocispec.Descriptor{}, err
		}
	}
	var desc ocispec.Descriptor
	raw, err := p.get(ctx, q, maxDocument, func(raw []byte, header http.Header) error {
		desc = descriptorOf(raw, contentType(header))
		for _, want := range []digest.Digest{p.target.digest, digest.Digest(header.Get("Docker-Content-Digest"))} {
			if strings.HasPrefix(string(want), "sha256:") && want != desc.Digest {
				return refuse(errdefs.ErrDataLoss, "manifest has digest %s, not %s", desc.Digest, clip(string(want)))
			}
		}
		_, err := decodeDocument(raw, desc.MediaType)
		return err
	})
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	return raw, desc, p.keep(ctx, raw, desc)
}

// noHead tells refusals that may be about HEAD itself, or about a manifest that changed: GET will tell.
func noHead(err error) bool {
	var status *statusError
	return errors.As(err, &status) && !busy(status.code) && status.code != http.StatusUnauthorized && status.code != http.StatusForbidden
}

// maybeKnown tells whether a record speaks of the reference.
func (p *pull) maybeKnown() bool {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	return p.named(p.target) != nil
}

// unchanged returns the root document if it is the one we have.
func (p *pull) unchanged(ctx context.Context, header http.Header) ([]byte, bool) {
	d := p.target.digest
	if d == "" {
		d = digest.Digest(header.Get("Docker-Content-Digest"))
	}
	if checkDigest(d) != nil || !p.served(d) || p.hold(ctx, blobKey(d)) != nil {
		return nil, false
	}
	raw, err := p.readDocument(d)
	return raw, err == nil
}

func contentType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// get reads a small answer whole and has it verified, trying again when the connection breaks, or without a mirror that lied.
func (p *pull) get(ctx context.Context, q request, most int64, verify func([]byte, http.Header) error) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		resp, err := p.reg.do(ctx, q)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
		resp.Body.Close()
		again := transient(err)
		if err == nil {
			raw, err = plainDocument(raw, most)
			switch {
			case err != nil:
			case int64(len(raw)) > most:
				err = refuse(errdefs.ErrResourceExhausted, "%s has more than %d bytes", q, most)
			default:
				err = verify(raw, resp.Header)
			}
			again = err != nil && p.reg.blame(resp.host, err)
		}
		switch {
		case err == nil:
			return raw, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case attempt == maxAttempts || !again:
			return nil, err
		}
		if err := p.prog.waiting(func() error { return sleep(ctx, backoff(attempt)) }); err != nil {
			return nil, err
		}
	}
}

// plainDocument undoes the compression by a proxy that compresses text although we ask it not to. JSON does not begin as gzip does.
func plainDocument(raw []byte, most int64) ([]byte, error) {
	if !bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		return raw, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, refuse(errdefs.ErrDataLoss, "answer in gzip: %v", err)
	}
	plain, err := io.ReadAll(io.LimitReader(z, most+1))
	if err != nil {
		return nil, refuse(errdefs.ErrDataLoss, "answer in gzip: %v", err)
	}
	return plain, nil
}

// document returns a manifest or config by its descriptor, from content/ where this repository has served it before, else from the registry.
// kind is where the registry has it.
func (p *pull) document(ctx context.Context, desc ocispec.Descriptor, kind string) ([]byte, error) {
	if err := p.hold(ctx, blobKey(desc.Digest)); err != nil {
		return nil, err
	}
	p.note(desc)
	if p.recorded(desc.Digest) {
		if raw, err := p.readDocument(desc.Digest); err == nil && int64(len(raw)) == desc.Size {
			return raw, nil
		}
	}
	accept := "*/*"
	if kind == "manifests" {
		accept = desc.MediaType
	}
	q := request{method: http.MethodGet, kind: kind, object: desc.Digest.String(), accept: accept}
	raw, err := p.get(ctx, q, maxDocument, func(raw []byte, header http.Header) error {
		if got := digest.FromBytes(raw); got != desc.Digest || int64(len(raw)) != desc.Size {
			return refuse(errdefs.ErrDataLoss, "%s arrives as %d bytes with digest %s, its descriptor says %d", desc.Digest, len(raw), got, desc.Size)
		}
		if t := contentType(header); kind == "manifests" && manifestType(t) && indexType(t) != indexType(desc.MediaType) {
			return refuse(errdefs.ErrInvalidArgument, "manifest %s is served as %q, its descriptor says %q", desc.Digest, t, clip(desc.MediaType))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return raw, p.keep(ctx, raw, desc)
}

// keep writes a verified document into content/.
func (p *pull) keep(ctx context.Context, raw []byte, desc ocispec.Descriptor) error {
	if err := p.hold(ctx, blobKey(desc.Digest)); err != nil {
		return err
	}
	p.note(desc)
	release, err := p.claims.take(ctx, blobKey(desc.Digest))
	if err != nil {
		return err
	}
	defer release()
	if have, err := p.readDocument(desc.Digest); err == nil && len(have) == len(raw) {
		return nil
	}
	// What is there and does not verify makes room.
	if err := ignoreNotFound(p.content.Delete(ctx, desc.Digest)); err != nil {
		return err
	}
	err = p.prog.waiting(func() error { // it syncs
		return content.WriteBlob(ctx, p.content, documentPrefix+p.ingestRef(desc.Digest), bytes.NewReader(raw), desc)
	})
	if err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, diskError(err))
	}
	p.step("pull.blob.written")
	return nil
}

// layer brings one layer here: its blob into content/ and its files into layers/, at the same time where there is a free unpacker.
func (p *pull) layer(ctx context.Context, downloads slots, desc ocispec.Descriptor, diffID digest.Digest, name string) (*layer, error) {
	for _, key := range []string{blobKey(desc.Digest), partialPrefix + p.ingestRef(desc.Digest), layerPrefix + string(diffID)} {
		if err := p.hold(ctx, key); err != nil {
			return nil, err
		}
	}
	p.note(desc)
	if err := p.fetch(ctx, downloads, desc, diffID, name); err != nil {
		if errdefs.IsNotFound(err) && foreignLayer(desc) {
			err = fmt.Errorf("%w (it is a foreign layer, and its own urls are not asked: push it to the registry)", err)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l := p.anyLayer(diffID)
	if l == nil || p.hold(ctx, layerPrefix+l.key()) != nil || p.layerByKey(l.key()) != l {
		var err error
		if l, err = p.unpackBlob(ctx, desc, diffID, nil); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if !p.proved {
		if err := p.match(ctx, desc, diffID); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return l, nil
}

// fetch returns when the blob is in content/. On the way it may have unpacked the layer, too. It waits for other pulls from the same registry
// only: how fast somebody else's registry is must not matter.
func (p *pull) fetch(ctx context.Context, downloads slots, desc ocispec.Descriptor, diffID digest.Digest, name string) error {
	release, err := p.claim(ctx, partialPrefix+p.ingestRef(desc.Digest))
	if err != nil {
		return err
	}
	defer release()
	if ok, err := p.present(ctx, desc); ok || err != nil {
		return err
	}
	if err := p.prog.waiting(func() error { return downloads.take(ctx) }); err != nil {
		return err
	}
	defer downloads.give()
	it := p.prog.item(name, desc.Size)
	defer p.prog.finish(name)
	along := p.unpackAlong(ctx, desc, diffID)
	if err = p.download(ctx, desc, it, along); err == nil {
		err = p.noteSender(ctx, desc.Digest)
	}
	return along.end(err)
}

// claim takes a key with the stall clock stopped.
func (p *pull) claim(ctx context.Context, key string) (release func(), err error) {
	err = p.prog.waiting(func() (err error) {
		release, err = p.claims.take(ctx, key)
		return err
	})
	return release, err
}

// haveBlob tells whether content/ has the blob. One that no record vouches for is hashed first; what is wrong is deleted. The claim keeps
// what another registry has brought meanwhile from being deleted in place of what was wrong.
func (p *pull) haveBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	release, err := p.claim(ctx, blobKey(desc.Digest))
	if err != nil {
		return false, err
	}
	defer release()
	f, err := os.Open(p.blobPath(desc.Digest))
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	p.Images.mu.Lock()
	known := p.knownBlob(desc.Digest)
	p.Images.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() == desc.Size {
		if known {
			return true, nil
		}
		check := digest.SHA256.Digester()
		if _, err := io.Copy(check.Hash(), &noticed{ctx, f, &p.prog}); err != nil {
			return false, err
		}
		if check.Digest() == desc.Digest {
			return true, nil
		}
	} else if known {
		// The blob is verified, so it is the descriptor that lies.
		return false, refuse(errdefs.ErrDataLoss, "%s has %d bytes, its descriptor says %d", desc.Digest, info.Size(), desc.Size)
	}
	return false, ignoreNotFound(p.content.Delete(ctx, desc.Digest))
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
func (p *pull) unpackBlob(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, fixes []fix) (*layer, error) {
	key := layerPrefix + layerKey(diffID, fixesKey(fixes))
	if err := p.hold(ctx, key); err != nil {
		return nil, err
	}
	release, err := p.claim(ctx, key)
	if err != nil {
		return nil, err
	}
	defer release()
	if l := p.layerByKey(strings.TrimPrefix(key, layerPrefix)); l != nil {
		return l, nil
	}
	if err := p.prog.waiting(func() error { return p.unpacks.take(ctx) }); err != nil {
		return nil, err
	}
	defer p.unpacks.give()
	f, err := os.Open(p.blobPath(desc.Digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name := "unpacking " + short(diffID)
	it := p.prog.item(name, 0)
	defer p.prog.finish(name)
	l, err := p.newLayer(ctx, source{Reader: f, size: desc.Size}, diffID, fixes, it)
	if err != nil {
		return nil, err
	}
	p.noteUnpacked(desc.Digest, diffID)
	return p.list(l), nil
}

// list makes an unpacked layer known to everybody and returns it. Where another blob has become the same layer meanwhile, that one is returned
// and l is deleted: there is one folder for a key.
func (c *Images) list(l *layer) *layer {
	c.mu.Lock()
	first := c.layers[l.key()]
	if first == nil {
		c.layers[l.key()] = l
	}
	c.mu.Unlock()
	if first != nil {
		if err := removeTree(c.layerDir(l.Dir)); err != nil {
			log.L.WithError(err).WithField("layer", l.Dir).Warn("layer that was unpacked twice could not be deleted")
		}
		return first
	}
	c.step("pull.unpacked")
	return l
}

// download fetches a blob into content/, from where an earlier attempt stopped. It may be there already: then its bytes are the proof that the
// repository has it.
func (p *pull) download(ctx context.Context, desc ocispec.Descriptor, it *item, along *alongside) error {
	var w content.Writer
	err := p.prog.waiting(func() (err error) { // it hashes what is there
		w, err = content.OpenWriter(ctx, p.content, content.WithRef(p.ingestRef(desc.Digest)), content.WithDescriptor(ocispec.Descriptor{Size: desc.Size}))
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
	d := &transfer{pull: p, desc: desc, w: w, offset: status.Offset, item: it, along: along}
	d.pieces = d.offset > 0
	if d.offset == desc.Size { // nothing is left to ask for, and another repository may have sent it
		ok, err := p.reg.has(ctx, desc.Digest)
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
		return errors.Join(err, ignoreNotFound(p.content.Abort(context.WithoutCancel(ctx), p.ingestRef(desc.Digest))))
	}
	if err == nil {
		p.step("pull.blob.written")
	}
	return err
}
