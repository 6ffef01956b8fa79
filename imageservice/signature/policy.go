// Package signature says whether signatures of an image satisfy the node's policy. It fetches
// nothing and remembers nothing. Signatures by keys are verified here; for those without a key
// (keyless) it runs a program.
//
// The policy is a TOML file:
//
//	[default]                       # for images that no prefix fits; without it they are accepted
//	require = "refuse"
//
//	[prefix."registry.example/team"]
//	require = "key"
//	keys = ["/etc/cribox/keys/team.pub"]
//
// The longest prefix that fits decides, alone.
package signature

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"

	"github.com/cribox/cribox/imageservice/imageref"
)

// Values of require and of mode.
const (
	accept, refuse, byKey, keyless = "accept", "refuse", "key", "keyless"
	warn                           = "warn"
)

// Policy is a file of rules.
type Policy struct{ file string }

// Open returns the policy of a file, which is read each time it is asked. "" accepts every image.
func Open(file string) *Policy { return &Policy{file: file} }

// Rule is what the policy says about the images of a prefix.
type Rule struct {
	Require string   `toml:"require"` // accept, refuse, key or keyless
	Mode    string   `toml:"mode"`    // refuse (the default), or warn
	Keys    []string `toml:"keys"`    // files with public keys in PEM; a signature of one of them is enough
	// TrustedRoot is the file trusted_root.json of a sigstore instance, and Identities are those who
	// may sign: one of them has to be in the certificate. Both are for keyless.
	TrustedRoot string     `toml:"trusted_root"`
	Identities  []Identity `toml:"identities"`
	// MatchRepository requires that the signature names the repository of the image. Otherwise a
	// signature counts wherever the image was copied to, as cosign verify has it.
	MatchRepository bool `toml:"match_repository"`

	name     string // for errors
	keys     []crypto.PublicKey
	root     []byte // content of TrustedRoot
	verifier string // program that verifies signatures without a key
}

type rules struct {
	Verifier string          `toml:"keyless_verifier"`
	Default  Rule            `toml:"default"`
	Prefix   map[string]Rule `toml:"prefix"`
}

// Subject is the image whose signatures are checked.
type Subject struct {
	Domain, Path string        // the registry and the repository that it is pulled from
	Digest       digest.Digest // of the document that the reference was resolved to
}

// For returns the rule for an image, with its keys. It returns nil if every image is accepted there.
// Errors name the file.
func (p *Policy) For(s Subject) (*Rule, error) {
	if p == nil || p.file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		return nil, fmt.Errorf("signature policy: %w", err)
	}
	all, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("signature policy %s: %w", p.file, err)
	}
	r := all.find(imageref.Registry(s.Domain) + "/" + s.Path)
	if r.Require == accept {
		return nil, nil
	}
	r.verifier = all.Verifier
	if err := r.load(filepath.Dir(p.file)); err != nil {
		return nil, fmt.Errorf("signature policy %s: %s: %w", p.file, r.name, err)
	}
	return r, nil
}

// parse decodes and checks a policy. A key that it does not know is an error.
func parse(b []byte) (all rules, err error) {
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&all); err != nil {
		var unknown *toml.StrictMissingError
		if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
			row, _ := unknown.Errors[0].Position()
			return all, fmt.Errorf("line %d: unknown key %q", row, strings.Join(unknown.Errors[0].Key(), "."))
		}
		var bad *toml.DecodeError
		if errors.As(err, &bad) {
			row, _ := bad.Position()
			return all, fmt.Errorf("line %d: %s", row, strings.TrimPrefix(bad.Error(), "toml: "))
		}
		return all, err
	}
	if all.Default.Require == "" {
		all.Default.Require = accept
	}
	if all.Verifier == "" {
		all.Verifier = defaultVerifier()
	}
	if !filepath.IsAbs(all.Verifier) {
		return all, fmt.Errorf("keyless_verifier: %q is not an absolute path", all.Verifier)
	}
	all.Default.name = "[default]"
	if err := all.Default.check(); err != nil {
		return all, fmt.Errorf("[default]: %w", err)
	}
	for prefix, r := range all.Prefix {
		r.name = fmt.Sprintf("[prefix.%q]", prefix)
		all.Prefix[prefix] = r
		domain, _, _ := strings.Cut(prefix, "/")
		if !strings.ContainsAny(domain, ".:") && domain != "localhost" || strings.ContainsAny(prefix, "*@") ||
			strings.Contains(prefix, "://") || strings.HasSuffix(prefix, "/") {
			return all, fmt.Errorf("%s: a prefix is a registry, or a registry and the beginning of a repository "+
				"without wildcards, such as docker.io/library", r.name)
		}
		if err := r.check(); err != nil {
			return all, fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return all, nil
}

func (r Rule) check() error {
	if r.Mode != "" && r.Mode != refuse && r.Mode != warn {
		return fmt.Errorf("mode: %q is neither refuse nor warn", r.Mode)
	}
	switch r.Require {
	case accept, refuse:
		if r.MatchRepository {
			return fmt.Errorf("require is %q, so match_repository would have no effect", r.Require)
		}
	case byKey:
		if len(r.Keys) == 0 {
			return errors.New("it requires a signature and names no keys")
		}
	case keyless:
		if err := r.checkKeyless(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("require: %q is not one of accept, refuse, key, keyless", r.Require)
	}
	if r.Require != byKey && len(r.Keys) > 0 {
		return fmt.Errorf("require is %q, so keys would have no effect", r.Require)
	}
	if r.Require != keyless && (r.TrustedRoot != "" || len(r.Identities) > 0) {
		return fmt.Errorf("require is %q, so trusted_root and identities would have no effect", r.Require)
	}
	return nil
}

// find returns the rule of the longest prefix of an image's name.
func (all rules) find(name string) *Rule {
	found, longest := all.Default, -1
	for prefix, r := range all.Prefix {
		domain, path, _ := strings.Cut(prefix, "/")
		if p := strings.TrimSuffix(imageref.Registry(domain)+"/"+path, "/"); strings.HasPrefix(name, p+"/") || name == p {
			if len(p) > longest {
				found, longest = r, len(p)
			}
		}
	}
	return &found
}

// Warns reports whether an image that the rule does not accept is pulled anyway.
func (r *Rule) Warns() bool { return r.Mode == warn }

// Signed reports whether the rule accepts images with the right signature. If not, it accepts none.
func (r *Rule) Signed() bool { return r.Require == byKey || r.Require == keyless }

// Name returns the name of the rule in the policy.
func (r *Rule) Name() string { return r.name }
