package pull

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/gunzip"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/registry"
)

// root asks the registry which document the reference points to. If this repository has served the
// reference before, root first sends a HEAD request, and uses the local document if its digest
// still matches. That is cheap, still proves that the caller may pull the image, and does not count
// against Docker Hub's rate limit.
func (r *resolver) root(ctx context.Context) ([]byte, ocispec.Descriptor, error) {
	q := registry.Request{Method: http.MethodGet, Kind: "manifests", Object: r.ref.Object(), Accept: manifest.Accept,
		Resolve: r.ref.Digest == ""}
	if r.by.catalog.Knows(r.ref) {
		head := q
		head.Method = http.MethodHead
		resp, err := r.reg.Do(ctx, head)
		if err == nil {
			resp.Body.Close()
			if raw, ok := r.unchanged(ctx, resp.Header); ok {
				desc := manifest.Describe(raw, contentType(resp.Header))
				if _, err := manifest.Decode(raw, desc.MediaType); err == nil { // otherwise the HEAD response lacks a usable type
					r.held.note(desc)
					return raw, desc, nil
				}
			}
		} else if !noHead(err) {
			return nil, ocispec.Descriptor{}, err
		}
	}
	var desc ocispec.Descriptor
	raw, err := r.get(ctx, q, manifest.MaxBytes, func(raw []byte, header http.Header) error {
		desc = manifest.Describe(raw, contentType(header))
		for _, want := range []digest.Digest{r.ref.Digest, digest.Digest(header.Get("Docker-Content-Digest"))} {
			if strings.HasPrefix(string(want), "sha256:") && want != desc.Digest {
				return fault.Refuse(errdefs.ErrDataLoss, "manifest has digest %s, not %s", desc.Digest, fault.Clip(string(want)))
			}
		}
		_, err := manifest.Decode(raw, desc.MediaType)
		return err
	})
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	return raw, desc, r.keep(ctx, raw, desc)
}

// noHead reports whether a refusal may be about the HEAD method, or about a manifest that changed.
// Then root tries GET.
func noHead(err error) bool {
	var status *registry.StatusError
	return errors.As(err, &status) && !registry.Busy(status.Code) && status.Code != http.StatusUnauthorized &&
		status.Code != http.StatusForbidden
}

// unchanged returns the local root document if its digest is the one in the response.
func (r *resolver) unchanged(ctx context.Context, header http.Header) ([]byte, bool) {
	d := r.ref.Digest
	if d == "" {
		d = digest.Digest(header.Get("Docker-Content-Digest"))
	}
	if imageref.CheckDigest(d) != nil || !r.by.catalog.Knows(imageref.Target{Domain: r.ref.Domain, Path: r.ref.Path,
		Digest: d}) || r.held.pin(ctx, content.BlobKey(d)) != nil {
		return nil, false
	}
	raw, err := r.by.blobs.ReadDocument(d)
	return raw, err == nil
}

func contentType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// get reads a small response and verifies it. It retries after a broken connection, and without a
// mirror that has sent wrong content.
func (r *resolver) get(
	ctx context.Context, q registry.Request, most int64, verify func([]byte, http.Header) error,
) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		resp, err := r.reg.Do(ctx, q)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
		resp.Body.Close()
		again := registry.Transient(err)
		if err == nil {
			raw, err = plainDocument(raw, most)
			switch {
			case err != nil:
			case int64(len(raw)) > most:
				err = fault.Refuse(errdefs.ErrResourceExhausted, "%s has more than %d bytes", q, most)
			default:
				err = verify(raw, resp.Header)
			}
			again = err != nil && r.reg.Blame(resp.Host, err)
		}
		switch {
		case err == nil:
			return raw, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case attempt == registry.MaxAttempts || !again:
			return nil, err
		}
		if err := r.prog.Waiting(func() error { return registry.Sleep(ctx, registry.Backoff(attempt)) }); err != nil {
			return nil, err
		}
	}
}

// plainDocument decompresses a document, because some proxies compress text although the request
// forbids it. JSON never begins like gzip.
func plainDocument(raw []byte, most int64) ([]byte, error) {
	if !bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		return raw, nil
	}
	z, err := gunzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fault.Refuse(errdefs.ErrDataLoss, "answer with gzip encoding: %v", err)
	}
	plain, err := io.ReadAll(io.LimitReader(z, most+1))
	if err != nil {
		return nil, fault.Refuse(errdefs.ErrDataLoss, "answer with gzip encoding: %v", err)
	}
	return plain, nil
}

// document returns the manifest or config of a descriptor: from content/ if this repository has
// served it before, otherwise from the registry. kind is "manifests" or "blobs", the part of the
// registry's API that serves it.
func (r *resolver) document(ctx context.Context, desc ocispec.Descriptor, kind string) ([]byte, error) {
	if err := r.held.pin(ctx, content.BlobKey(desc.Digest)); err != nil {
		return nil, err
	}
	r.held.note(desc)
	if r.recorded(desc.Digest) {
		if raw, err := r.by.blobs.ReadDocument(desc.Digest); err == nil && int64(len(raw)) == desc.Size {
			return raw, nil
		}
	}
	accept := "*/*"
	if kind == "manifests" {
		accept = desc.MediaType
	}
	q := registry.Request{Method: http.MethodGet, Kind: kind, Object: desc.Digest.String(), Accept: accept}
	raw, err := r.get(ctx, q, manifest.MaxBytes, func(raw []byte, header http.Header) error {
		if got := digest.FromBytes(raw); got != desc.Digest || int64(len(raw)) != desc.Size {
			return fault.Refuse(errdefs.ErrDataLoss, "%s has %d bytes and digest %s, its descriptor says %d bytes",
				desc.Digest, len(raw), got, desc.Size)
		}
		if t := contentType(header); kind == "manifests" && manifest.IsManifest(t) &&
			manifest.IsIndex(t) != manifest.IsIndex(desc.MediaType) {
			return fault.Refuse(errdefs.ErrInvalidArgument, "manifest %s is served as %q, but its descriptor says %q",
				desc.Digest, t, fault.Clip(desc.MediaType))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return raw, r.keep(ctx, raw, desc)
}

// keep writes a verified document to content/.
func (r *resolver) keep(ctx context.Context, raw []byte, desc ocispec.Descriptor) error {
	if err := r.held.pin(ctx, content.BlobKey(desc.Digest)); err != nil {
		return err
	}
	r.held.note(desc)
	release, err := r.by.claims.Take(ctx, content.BlobKey(desc.Digest))
	if err != nil {
		return err
	}
	defer release()
	if have, err := r.by.blobs.ReadDocument(desc.Digest); err == nil && len(have) == len(raw) {
		return nil
	}
	err = r.prog.Waiting(func() error { return r.by.blobs.WriteDocument(raw, desc) })
	if err != nil {
		return err
	}
	r.by.cfg.Step.Pass("pull.blob.written")
	return nil
}
