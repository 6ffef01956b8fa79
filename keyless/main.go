// Command cribox-keyless verifies one sigstore bundle that was signed without a long-lived key. The
// daemon starts it for each bundle, as an unprivileged user: it opens no file and no connection, and
// all that it needs is in the request on its standard input.
//
// It is a program and a Go module of its own so that the daemon does not carry its libraries.
package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// maxRequest is the most bytes of a request.
const maxRequest = 8 << 20

// Request is what the daemon asks.
type Request struct {
	Digest      string          `json:"digest"`      // sha256:HEX of the image
	TrustedRoot json.RawMessage `json:"trustedRoot"` // trusted_root.json of the sigstore instance
	Bundle      json.RawMessage `json:"bundle"`
	Identities  []Identity      `json:"identities"` // one of them has to be in the certificate
}

// Identity is who may have signed. Of each pair one is set; a regexp has to match all of the value.
type Identity struct {
	Issuer        string `json:"issuer"`
	IssuerRegexp  string `json:"issuer_regexp"`
	Subject       string `json:"subject"`
	SubjectRegexp string `json:"subject_regexp"`
}

// Answer is what the daemon gets.
type Answer struct {
	Accepted bool   `json:"accepted"`
	Reason   string `json:"reason,omitempty"`
	Payload  []byte `json:"payload,omitempty"` // the statement that was signed
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cribox-keyless:", err)
		os.Exit(1)
	}
}

// run answers one request. A bundle that is not accepted is an answer; an error is a request that
// cannot be answered.
func run(in io.Reader, out io.Writer) error {
	var q Request
	if err := json.NewDecoder(io.LimitReader(in, maxRequest)).Decode(&q); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	digest, err := hex.DecodeString(strings.TrimPrefix(q.Digest, "sha256:"))
	if err != nil || len(digest) != 32 {
		return fmt.Errorf("%q is not a sha256 digest", q.Digest)
	}
	trusted, err := root.NewTrustedRootFromJSON(q.TrustedRoot)
	if err != nil {
		return fmt.Errorf("trusted root: %w", err)
	}
	policy, err := identities(q.Identities)
	if err != nil {
		return err
	}
	payload, err := check(trusted, q.Bundle, verify.NewPolicy(verify.WithArtifactDigest("sha256", digest), policy...))
	a := Answer{Accepted: err == nil, Payload: payload}
	if err != nil {
		a.Reason = err.Error()
	}
	return json.NewEncoder(out).Encode(a)
}

// identities returns the identities as options of a policy.
func identities(all []Identity) (options []verify.PolicyOption, err error) {
	for _, i := range all {
		c, err := verify.NewShortCertificateIdentity(i.Issuer, whole(i.IssuerRegexp), i.Subject, whole(i.SubjectRegexp))
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		options = append(options, verify.WithCertificateIdentity(c))
	}
	if len(options) == 0 {
		return nil, errors.New("the request has no identity")
	}
	return options, nil
}

// whole makes a regexp match all of a value, and not only a part of it.
func whole(expr string) string {
	if expr == "" {
		return ""
	}
	return `^(?:` + expr + `)$`
}

// check verifies a bundle and returns the statement in it. The certificate has to be of the trusted
// root and valid when the signature was seen by a transparency log or a timestamp server, one log has
// to have the signature, and one has to have the certificate if the root names logs of certificates.
func check(trusted *root.TrustedRoot, raw []byte, policy verify.PolicyBuilder) ([]byte, error) {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	options := []verify.VerifierOption{verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1)}
	if len(trusted.CTLogs()) > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	v, err := verify.NewVerifier(trusted, options...)
	if err != nil {
		return nil, err
	}
	if _, err := v.Verify(&b, policy); err != nil {
		return nil, err
	}
	e, err := b.Envelope()
	if err != nil {
		return nil, err
	}
	return e.RawEnvelope().DecodeB64Payload()
}
