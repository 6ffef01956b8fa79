package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/registry"
	"github.com/cribox/cribox/imageservice/signature"
)

const (
	// maxSignature is the most bytes of one signature with the text that was signed.
	maxSignature = 256 << 10
	// maxSignatures is how many signatures of an image are read; others are ignored.
	maxSignatures = 64
)

// checkSignatures refuses the image if the node's policy does. desc is the document that the
// reference was resolved to: all that follows is fetched by the digests in it.
func (r *resolver) checkSignatures(ctx context.Context, desc ocispec.Descriptor) error {
	s := signature.Subject{Domain: r.ref.Domain, Path: r.ref.Path, Digest: desc.Digest}
	rule, err := r.by.cfg.Policy.For(s)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if rule == nil {
		return nil
	}
	if !rule.Signed() {
		err = fault.Refuse(fault.ErrSignature, "%s of the signature policy accepts no image of %s",
			rule.Name(), r.ref.Repository())
	} else {
		err = (&signatures{resolver: r, rule: rule, subject: s, left: maxSignatures}).check(ctx)
	}
	if err != nil && rule.Warns() && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("image", r.ref.String()).
			Warn("the image is pulled although its signature is not accepted")
		return nil
	}
	return err
}

// signatures looks for a signature that a rule accepts.
type signatures struct {
	*resolver
	rule    *signature.Rule
	subject signature.Subject
	left    int
	reasons []string // why the signatures so far were not accepted
}

// check looks for a signature in both places where cosign puts them. An error that says nothing
// about the signatures, such as a registry that does not answer, is returned as it is.
func (s *signatures) check(ctx context.Context) error {
	for _, look := range []func(context.Context) (bool, error){s.simple, s.bundles} {
		if ok, err := look(ctx); ok || err != nil {
			return err
		}
	}
	why := "it has no signature"
	if len(s.reasons) > 0 {
		why = strings.Join(s.reasons, "; ")
	}
	return fault.Refuse(fault.ErrSignature, "%s is not accepted by %s of the signature policy: %s",
		s.subject.Digest, s.rule.Name(), why)
}

// rejected notes why a signature does not count.
func (s *signatures) rejected(err error) {
	text := fault.Clip(err.Error())
	if len(s.reasons) < 5 && !slices.Contains(s.reasons, text) {
		s.reasons = append(s.reasons, text)
	}
}

// fetch reads a document of the repository. It returns nil without an error if the document is
// missing, or is not what was asked for; the latter is noted as the reason.
func (s *signatures) fetch(
	ctx context.Context, q registry.Request, want ocispec.Descriptor, most int64,
) ([]byte, error) {
	if want.Size > most {
		s.rejected(fmt.Errorf("a signature has %d bytes, more than %d", want.Size, most))
		return nil, nil
	}
	raw, err := s.get(ctx, q, most, func(raw []byte, _ http.Header) error {
		if want.Digest != "" && (digest.FromBytes(raw) != want.Digest || int64(len(raw)) != want.Size) {
			return fault.Refuse(errdefs.ErrDataLoss, "%s is not what its descriptor says", q)
		}
		return nil
	})
	switch {
	case fault.IsRefused(err):
		s.rejected(err)
		return nil, nil
	case errdefs.IsNotFound(err):
		return nil, nil
	}
	return raw, err
}

// document reads a manifest or an index of signatures, by tag or by digest.
func (s *signatures) document(
	ctx context.Context, kind, object string, want ocispec.Descriptor, into any,
) (bool, error) {
	raw, err := s.fetch(ctx, registry.Request{Method: http.MethodGet, Kind: kind, Object: object, Accept: manifest.Accept,
		Resolve: want.Digest == ""}, want, manifest.MaxBytes)
	if raw == nil || err != nil {
		return false, err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		s.rejected(errors.New("the list of signatures is not JSON"))
		return false, nil
	}
	return true, nil
}

// simple looks for signatures of the older format, at a tag made of the image's digest.
func (s *signatures) simple(ctx context.Context) (bool, error) {
	var list ocispec.Manifest
	ok, err := s.document(ctx, "manifests", s.tag()+".sig", ocispec.Descriptor{}, &list)
	if !ok || err != nil {
		return false, err
	}
	for _, layer := range list.Layers {
		if layer.MediaType != signature.SimpleType || s.left == 0 {
			continue
		}
		s.left--
		payload, err := s.blob(ctx, layer)
		if err != nil {
			return false, err
		}
		if payload == nil {
			continue
		}
		err = s.rule.CheckSimple(payload, layer.Annotations[signature.SimpleAnnotation], s.subject)
		if err == nil {
			return true, nil
		}
		s.rejected(err)
	}
	return false, nil
}

// bundles looks for signatures that refer to the image: a registry lists them, or a tag made of the
// image's digest does.
func (s *signatures) bundles(ctx context.Context) (bool, error) {
	var list ocispec.Index
	ok, err := s.document(ctx, "referrers", s.subject.Digest.String(), ocispec.Descriptor{}, &list)
	if notSupported(err) {
		ok, err = false, nil
	}
	if !ok && err == nil {
		ok, err = s.document(ctx, "manifests", s.tag(), ocispec.Descriptor{}, &list)
	}
	if !ok || err != nil {
		return false, err
	}
	for _, d := range list.Manifests {
		predicate := d.Annotations[signature.PredicateAnnotation]
		if !strings.HasPrefix(d.ArtifactType, signature.BundleType) || s.left == 0 ||
			predicate != "" && predicate != signature.SignPredicate {
			continue
		}
		s.left--
		if ok, err := s.bundle(ctx, d); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// bundle checks the bundle of one manifest.
func (s *signatures) bundle(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	if imageref.CheckDigest(d.Digest) != nil {
		s.rejected(errors.New("a signature has an invalid digest"))
		return false, nil
	}
	var m ocispec.Manifest
	if ok, err := s.document(ctx, "manifests", d.Digest.String(), d, &m); !ok || err != nil {
		return false, err
	}
	if len(m.Layers) != 1 || !strings.HasPrefix(m.Layers[0].MediaType, signature.BundleType) {
		s.rejected(errors.New("a signature has no bundle"))
		return false, nil
	}
	raw, err := s.blob(ctx, m.Layers[0])
	if raw == nil || err != nil {
		return false, err
	}
	err = s.prog.Waiting(func() error { return s.rule.CheckBundle(ctx, raw, s.subject) })
	switch {
	case errors.Is(err, signature.ErrVerifier):
		return false, fmt.Errorf("%w: %w", err, fault.ErrSignature)
	case err != nil:
		s.rejected(err)
	}
	return err == nil, nil
}

// blob reads the blob of a signature.
func (s *signatures) blob(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if imageref.CheckDigest(d.Digest) != nil {
		s.rejected(errors.New("a signature has an invalid digest"))
		return nil, nil
	}
	return s.fetch(ctx, registry.Request{Method: http.MethodGet, Kind: "blobs", Object: d.Digest.String(), Accept: "*/*"},
		d, maxSignature)
}

// tag is the tag for what belongs to the image.
func (s *signatures) tag() string { return strings.Replace(s.subject.Digest.String(), ":", "-", 1) }

// notSupported reports whether a registry may not know the request. Some answer 400, 405 or 501
// where the standard asks for 404.
func notSupported(err error) bool {
	var status *registry.StatusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.Code {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}
