// Package authority is a sigstore instance for tests: it makes certificates, signatures and the
// entries of its transparency log, all in memory.
package authority

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// Authority is one instance.
type Authority struct{ *ca.VirtualSigstore }

// New makes an instance with new keys.
func New() (Authority, error) {
	v, err := ca.NewVirtualSigstore()
	return Authority{v}, err
}

// Root returns the trusted root of the instance. ct are the logs of certificates that it names.
func (a Authority) Root(ct map[string]*root.TransparencyLog) ([]byte, error) {
	logs := a.RekorLogs()
	for _, all := range []map[string]*root.TransparencyLog{logs, ct} {
		for id, l := range all {
			raw, err := hex.DecodeString(id) // the library has the digits there
			if err != nil {
				return nil, err
			}
			l.ID = raw
		}
	}
	r, err := root.NewTrustedRoot(root.TrustedRootMediaType01, a.FulcioCertificateAuthorities(), ct,
		a.TimestampingAuthorities(), logs)
	if err != nil {
		return nil, err
	}
	return r.MarshalJSON()
}

// Sign returns a bundle with a signature of an image, sha256:HEX, by an identity. at is when the log
// saw it.
func (a Authority) Sign(issuer, subject, image string, at time.Time) (*protobundle.Bundle, error) {
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],`+
		`"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`, strings.TrimPrefix(image, "sha256:"))
	e, err := a.AttestAtTime(subject, issuer, []byte(statement), at, true)
	if err != nil {
		return nil, err
	}
	envelope, err := envelopeOf(e)
	if err != nil {
		return nil, err
	}
	content, err := e.VerificationContent()
	if err != nil {
		return nil, err
	}
	entries, err := e.TlogEntries()
	if err != nil {
		return nil, err
	}
	material := &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_Certificate{
		Certificate: &protocommon.X509Certificate{RawBytes: content.Certificate().Raw}}}
	for _, entry := range entries {
		complete, err := a.complete(entry.TransparencyLogEntry())
		if err != nil {
			return nil, err
		}
		material.TlogEntries = append(material.TlogEntries, complete)
	}
	return &protobundle.Bundle{MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: material,
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: envelope}}, nil
}

// envelopeOf returns the envelope of what was signed.
func envelopeOf(e verify.SignedEntity) (*protodsse.Envelope, error) {
	content, err := e.SignatureContent()
	if err != nil {
		return nil, err
	}
	raw := content.EnvelopeContent().RawEnvelope()
	payload, err := raw.DecodeB64Payload()
	if err != nil {
		return nil, err
	}
	sig, err := base64.StdEncoding.DecodeString(raw.Signatures[0].Sig)
	if err != nil {
		return nil, err
	}
	return &protodsse.Envelope{PayloadType: raw.PayloadType, Payload: payload,
		Signatures: []*protodsse.Signature{{Sig: sig}}}, nil
}

// complete adds to the entry of a log what the library leaves out of it: its kind, and the promise of
// the log to have it, with the time.
func (a Authority) complete(e *protorekor.TransparencyLogEntry) (*protorekor.TransparencyLogEntry, error) {
	promise, err := a.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(e.CanonicalizedBody), IntegratedTime: e.IntegratedTime,
		LogIndex: e.LogIndex, LogID: hex.EncodeToString(e.LogId.KeyId),
	})
	if err != nil {
		return nil, err
	}
	e.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	e.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: promise}
	return e, nil
}
