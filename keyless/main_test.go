package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/cribox/cribox/keyless/authority"
)

const (
	issuer  = "https://issuer.example"
	subject = "builder@team.example"
)

var (
	image = "sha256:" + strings.Repeat("ab", 32)
	other = "sha256:" + strings.Repeat("cd", 32)
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// instance is a sigstore instance that was made for the test.
type instance struct{ authority.Authority }

func newInstance(t testing.TB) instance { return instance{must(authority.New())(t)} }

// sign returns a bundle with a signature of an image.
func (a instance) sign(t testing.TB, who, digest string, at time.Time) *protobundle.Bundle {
	return must(a.Sign(issuer, who, digest, at))(t)
}

func (a instance) request(t testing.TB, b *protobundle.Bundle) Request {
	return Request{Digest: image, TrustedRoot: must(a.Root(nil))(t), Bundle: must(protojson.Marshal(b))(t),
		Identities: []Identity{{Issuer: issuer, Subject: subject}}}
}

func ask(t testing.TB, q Request) (a Answer, err error) {
	t.Helper()
	var out bytes.Buffer
	if err = run(bytes.NewReader(must(json.Marshal(q))(t)), &out); err == nil {
		err = json.Unmarshal(out.Bytes(), &a)
	}
	return a, err
}

// inTime is when a certificate of the test is valid.
func inTime() time.Time { return time.Now().Add(5 * time.Minute) }

// TestAccepted checks that a signature of the right identity is accepted, and that the answer has the
// statement.
func TestAccepted(t *testing.T) {
	a := newInstance(t)
	b := a.sign(t, subject, image, inTime())
	for name, identities := range map[string][]Identity{
		"exact":         {{Issuer: issuer, Subject: subject}},
		"regexp":        {{IssuerRegexp: `https://issuer\..*`, SubjectRegexp: `[a-z]+@team\.example`}},
		"one of two":    {{Issuer: issuer, Subject: "x"}, {Issuer: issuer, Subject: subject}},
		"regexp with |": {{Issuer: issuer, SubjectRegexp: `nobody|builder@team\.example`}},
	} {
		q := a.request(t, b)
		q.Identities = identities
		answer, err := ask(t, q)
		if err != nil || !answer.Accepted || !bytes.Contains(answer.Payload, []byte(strings.Repeat("ab", 32))) {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
	}
}

// TestRefused checks that nothing else is accepted.
func TestRefused(t *testing.T) {
	a, stranger := newInstance(t), newInstance(t)
	good := a.sign(t, subject, image, inTime())
	for name, row := range map[string]struct {
		edit   func(*Request)
		reason string
	}{
		"another identity": {func(q *Request) { q.Identities = []Identity{{Issuer: issuer, Subject: "chief@team.example"}} },
			"identity"},
		"another issuer": {func(q *Request) { q.Identities = []Identity{{Issuer: "https://x.example", Subject: subject}} },
			"identity"},
		"part of the identity": {func(q *Request) { q.Identities = []Identity{{Issuer: issuer, SubjectRegexp: `team\.example`}} },
			"identity"},
		"beginning of the identity": {func(q *Request) { q.Identities = []Identity{{Issuer: issuer, SubjectRegexp: `builder|x`}} },
			"identity"},
		"another image": {func(q *Request) { q.Digest = other }, "digest"},
		"another authority": {func(q *Request) {
			q.Bundle = must(protojson.Marshal(stranger.sign(t, subject, image, inTime())))(t)
		}, "log"},
		"certificate of another authority": {func(q *Request) {
			b := stranger.sign(t, subject, image, inTime())
			b.VerificationMaterial.TlogEntries = good.VerificationMaterial.TlogEntries
			q.Bundle = must(protojson.Marshal(b))(t)
		}, "log"},
		"expired certificate": {func(q *Request) {
			q.Bundle = must(protojson.Marshal(a.sign(t, subject, image, time.Now().Add(11*time.Minute))))(t)
		}, "certificate"},
		"signed before the certificate": {func(q *Request) {
			q.Bundle = must(protojson.Marshal(a.sign(t, subject, image, time.Now().Add(-30*time.Minute))))(t)
		}, "certificate"},
		"no log entry": {func(q *Request) {
			b := a.sign(t, subject, image, inTime())
			b.VerificationMaterial.TlogEntries = nil
			q.Bundle = must(protojson.Marshal(b))(t)
		}, ""},
		"log entry of another signature": {func(q *Request) {
			b := a.sign(t, subject, image, inTime())
			b.VerificationMaterial.TlogEntries = a.sign(t, subject, image, inTime()).VerificationMaterial.TlogEntries
			q.Bundle = must(protojson.Marshal(b))(t)
		}, "log"},
		"changed log entry": {func(q *Request) {
			b := a.sign(t, subject, image, inTime())
			e := b.VerificationMaterial.TlogEntries[0]
			b.VerificationMaterial.TlogEntries = []*protorekor.TransparencyLogEntry{{LogIndex: e.LogIndex, LogId: e.LogId,
				KindVersion: e.KindVersion, IntegratedTime: e.IntegratedTime - 1, InclusionPromise: e.InclusionPromise,
				InclusionProof: e.InclusionProof, CanonicalizedBody: e.CanonicalizedBody}}
			q.Bundle = must(protojson.Marshal(b))(t)
		}, "log"},
		"changed text": {func(q *Request) {
			b := a.sign(t, subject, other, inTime())
			b.GetDsseEnvelope().Payload = bytes.ReplaceAll(b.GetDsseEnvelope().Payload, []byte("cdcd"), []byte("abab"))
			q.Bundle = must(protojson.Marshal(b))(t)
		}, ""},
		"a key in place of a certificate": {func(q *Request) {
			b := a.sign(t, subject, image, inTime())
			b.VerificationMaterial.Content = &protobundle.VerificationMaterial_PublicKey{
				PublicKey: &protocommon.PublicKeyIdentifier{Hint: "x"}}
			q.Bundle = must(protojson.Marshal(b))(t)
		}, ""},
		"certificate in no log of certificates": {func(q *Request) { q.TrustedRoot = must(a.Root(a.CTLogs()))(t) }, "certificate timestamp"},
		"no bundle":                             {func(q *Request) { q.Bundle = []byte(`{}`) }, "bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			q := a.request(t, good)
			row.edit(&q)
			answer, err := ask(t, q)
			if err != nil || answer.Accepted || answer.Payload != nil || !strings.Contains(answer.Reason, row.reason) {
				t.Errorf("%+v, %v; want a reason with %q", answer, err, row.reason)
			}
			t.Log(answer.Reason)
		})
	}
}

// TestBadRequests checks that a request that cannot be answered is an error.
func TestBadRequests(t *testing.T) {
	a := newInstance(t)
	good := a.request(t, a.sign(t, subject, image, inTime()))
	for name, edit := range map[string]func(*Request){
		"no digest":      func(q *Request) { q.Digest = "" },
		"short digest":   func(q *Request) { q.Digest = "sha256:abab" },
		"no root":        func(q *Request) { q.TrustedRoot = []byte(`{}`) },
		"no identity":    func(q *Request) { q.Identities = nil },
		"empty identity": func(q *Request) { q.Identities = []Identity{{}} },
		"no subject":     func(q *Request) { q.Identities = []Identity{{Issuer: issuer}} },
		"no issuer":      func(q *Request) { q.Identities = []Identity{{Subject: subject}} },
		"broken regexp":  func(q *Request) { q.Identities = []Identity{{Issuer: issuer, SubjectRegexp: "("}} },
	} {
		q := good
		edit(&q)
		if answer, err := ask(t, q); err == nil {
			t.Errorf("%s: %+v", name, answer)
		}
	}
	if err := run(strings.NewReader("x"), &bytes.Buffer{}); err == nil {
		t.Error("no JSON is accepted")
	}
}
