package signature

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
)

// Names of the formats in which cosign keeps signatures in a registry.
const (
	// SimpleType is the media type of a layer with the text that was signed. The signature is an
	// annotation of the layer.
	SimpleType       = "application/vnd.dev.cosign.simplesigning.v1+json"
	SimpleAnnotation = "dev.cosignproject.cosign/signature"
	// BundleType begins the media type of a bundle: text, signature and more in one document.
	BundleType = "application/vnd.dev.sigstore.bundle"
	// PredicateAnnotation of a bundle says what it states about the image.
	PredicateAnnotation = "dev.sigstore.bundle.predicateType"
	// SignPredicate is that of a signature. Other bundles are attestations, which say something
	// about an image and do not approve of it.
	SignPredicate = "https://sigstore.dev/cosign/sign/v1"
)

const (
	simpleText    = "cosign container image signature"
	statementType = "application/vnd.in-toto+json"
)

// CheckSimple returns an error unless the rule accepts a signature of the older format: payload is
// the text that was signed, signature its signature in base64.
func (r *Rule) CheckSimple(payload []byte, signature string, s Subject) error {
	if r.Require == keyless {
		return errors.New("signatures without a key are accepted in bundles only")
	}
	raw, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return errors.New("the signature is not base64")
	}
	if !r.signedByKey(payload, raw) {
		return errors.New("no key of the policy has made the signature")
	}
	var doc struct {
		Critical struct {
			Identity struct {
				Reference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &doc); err != nil {
		return fmt.Errorf("the signed text is not JSON: %w", err)
	}
	c := doc.Critical
	switch {
	case c.Type != simpleText:
		return fmt.Errorf("the signed text is a %q", fault.Clip(c.Type))
	case c.Image.Digest != s.Digest.String():
		return fmt.Errorf("the signature is for %s", fault.Clip(c.Image.Digest))
	}
	return r.checkRepository(c.Identity.Reference, s)
}

// CheckBundle returns an error unless the rule accepts a signature in a bundle. It is ErrVerifier if
// that could not be found out.
func (r *Rule) CheckBundle(ctx context.Context, bundle []byte, s Subject) error {
	payload, err := r.verifyBundle(ctx, bundle, s)
	if err != nil {
		return err
	}
	return r.checkStatement(payload, s)
}

// verifyBundle verifies the signature in a bundle and returns the text that was signed.
func (r *Rule) verifyBundle(ctx context.Context, bundle []byte, s Subject) ([]byte, error) {
	if r.Require == keyless {
		return r.askVerifier(ctx, bundle, s)
	}
	return r.openEnvelope(bundle)
}

// openEnvelope verifies the signature in a bundle with the keys of the rule.
func (r *Rule) openEnvelope(bundle []byte) ([]byte, error) {
	var doc struct {
		MediaType string
		Envelope  *struct {
			Payload     []byte
			PayloadType string
			Signatures  []struct{ Sig []byte }
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &doc); err != nil {
		return nil, fmt.Errorf("the bundle is not JSON: %w", err)
	}
	if !strings.HasPrefix(doc.MediaType, BundleType) || doc.Envelope == nil {
		return nil, errors.New("the bundle has no signed envelope")
	}
	e := doc.Envelope
	if e.PayloadType != statementType {
		return nil, fmt.Errorf("the signed text is a %q", fault.Clip(e.PayloadType))
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("the envelope has %d signatures, not one", len(e.Signatures))
	}
	if !r.signedByKey(envelope(e.PayloadType, e.Payload), e.Signatures[0].Sig) {
		return nil, errors.New("no key of the policy has made the signature")
	}
	return e.Payload, nil
}

// checkStatement checks what a verified bundle says.
func (r *Rule) checkStatement(payload []byte, s Subject) error {
	var doc struct {
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(payload, &doc); err != nil {
		return fmt.Errorf("the signed text is not JSON: %w", err)
	}
	if doc.PredicateType != SignPredicate {
		return fmt.Errorf("it is a statement of type %q, not a signature", fault.Clip(doc.PredicateType))
	}
	var others []string
	for _, of := range doc.Subject {
		if of.Digest["sha256"] != "" && "sha256:"+of.Digest["sha256"] == s.Digest.String() {
			return r.checkRepository(of.Name, s)
		}
		others = append(others, of.Digest["sha256"])
	}
	return fmt.Errorf("the signature is for %s", fault.Clip(strings.Join(others, ", ")))
}

// envelope returns the bytes that are signed for an envelope (DSSE's pre-authentication encoding).
func envelope(kind string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(payload), payload)
}

// checkRepository compares the repository that the signer has named with that of the image, if the
// rule wants that.
func (r *Rule) checkRepository(named string, s Subject) error {
	if !r.MatchRepository {
		return nil
	}
	ref, err := reference.ParseNormalizedNamed(named)
	if err != nil || reference.Path(ref) != s.Path ||
		imageref.Registry(reference.Domain(ref)) != imageref.Registry(s.Domain) {
		return fmt.Errorf("the signature is for repository %q", fault.Clip(named))
	}
	return nil
}
