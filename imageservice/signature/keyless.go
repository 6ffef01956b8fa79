package signature

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/program"
)

const (
	verifierName = "cribox-keyless"
	verifierTime = 30 * time.Second
	maxRoot      = 2 << 20
	maxAnswer    = 1 << 20
)

// ErrVerifier means that the program for signatures without a key gave no answer.
var ErrVerifier = errors.New("cannot verify signatures without a key")

// Identity is who may sign without a key: an issuer of identities and a subject, which is the
// address of a person or the URL of a workflow. A regexp has to match all of the value.
type Identity struct {
	Issuer        string `toml:"issuer" json:"issuer"`
	IssuerRegexp  string `toml:"issuer_regexp" json:"issuer_regexp"`
	Subject       string `toml:"subject" json:"subject"`
	SubjectRegexp string `toml:"subject_regexp" json:"subject_regexp"`
}

func (i Identity) check() error {
	for _, pair := range [][3]string{{"issuer", i.Issuer, i.IssuerRegexp}, {"subject", i.Subject, i.SubjectRegexp}} {
		if (pair[1] == "") == (pair[2] == "") {
			return fmt.Errorf("an identity needs either %[1]s or %[1]s_regexp", pair[0])
		}
		if _, err := regexp.Compile(pair[2]); err != nil {
			return fmt.Errorf("%s_regexp: %w", pair[0], err)
		}
	}
	return nil
}

func (r Rule) checkKeyless() error {
	if r.TrustedRoot == "" {
		return errors.New("it requires a signature without a key and names no trusted_root")
	}
	if len(r.Identities) == 0 {
		return errors.New("it requires a signature without a key and names no identities")
	}
	for _, i := range r.Identities {
		if err := i.check(); err != nil {
			return err
		}
	}
	return nil
}

// defaultVerifier returns the program that lies beside this one.
func defaultVerifier() string {
	own, err := os.Executable()
	if err != nil {
		return filepath.Join("/usr/local/bin", verifierName)
	}
	return filepath.Join(filepath.Dir(own), verifierName)
}

// loadRoot reads the trusted root. A relative path begins at the folder of the policy.
func (r *Rule) loadRoot(folder string) error {
	path := r.TrustedRoot
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.root, err = io.ReadAll(io.LimitReader(f, maxRoot)); err != nil {
		return err
	}
	if !json.Valid(r.root) {
		return fmt.Errorf("%s is not JSON of at most %d bytes", path, maxRoot)
	}
	return nil
}

// askVerifier has a bundle verified by the program of the policy, and returns the text that was
// signed. The program opens no files: all that it needs is in the request.
func (r *Rule) askVerifier(ctx context.Context, bundle []byte, s Subject) ([]byte, error) {
	if !json.Valid(bundle) {
		return nil, errors.New("the bundle is not JSON")
	}
	request, err := json.Marshal(map[string]any{"digest": s.Digest, "trustedRoot": json.RawMessage(r.root),
		"bundle": json.RawMessage(bundle), "identities": r.Identities})
	if err != nil {
		return nil, err
	}
	out, err := program.Ask(ctx, program.Question{Path: r.verifier, Input: request, Time: verifierTime, Most: maxAnswer,
		Nobody: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVerifier, err)
	}
	var answer struct {
		Accepted bool
		Reason   string
		Payload  []byte
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("%w: %s gives an answer that is not JSON", ErrVerifier, r.verifier)
	}
	if !answer.Accepted {
		return nil, errors.New(fault.Clip(answer.Reason))
	}
	return answer.Payload, nil
}
