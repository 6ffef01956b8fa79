// Package imageref parses the names of images. It knows nothing else about images.
package imageref

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Target is a parsed image reference. Either Tag or Digest is set. If the text has both, the digest
// is used and the tag ignored, because nothing proves that the tag ever pointed to that digest.
type Target struct {
	Domain string // host[:port] of the registry, "docker.io" for Docker Hub
	Path   string // repository on that registry
	Tag    string
	Digest digest.Digest
}

// IsID reports whether s is the hex part of an image ID.
func IsID(s string) bool { return bareID.MatchString(s) }

// IsIDPrefix reports whether s may be the hex part of an image ID or a prefix of it.
func IsIDPrefix(s string) bool { return idPrefix.MatchString(s) }

var (
	bareID   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	idPrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
)

// Parse parses a reference as docker does: it adds docker.io, library/ and the tag latest where
// they are missing. It refuses an image ID: "sha256:<64 hex>" could also be parsed as a tag of
// docker.io/library/sha256. Every error is ErrInvalidArgument.
func Parse(s string) (Target, error) {
	if s == "" {
		return Target{}, fmt.Errorf("image: is empty: %w", errdefs.ErrInvalidArgument)
	}
	if bareID.MatchString(strings.TrimPrefix(s, "sha256:")) {
		return Target{}, fmt.Errorf("%q is an image id, not a reference: %w", s, errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Target{}, badReference(s, err)
	}
	t := Target{Domain: reference.Domain(named), Path: reference.Path(named)}
	switch r := named.(type) {
	case reference.Digested:
		t.Digest = r.Digest()
		if err := CheckDigest(t.Digest); err != nil {
			return Target{}, badReference(s, err)
		}
	case reference.Tagged:
		t.Tag = r.Tag()
	default:
		t.Tag = "latest"
	}
	return t, nil
}

// Quoted returns untrusted text for use in an error, shortened and quoted.
func Quoted(s string) string {
	if len(s) > 256 {
		s = s[:256] + "..."
	}
	return strconv.Quote(s)
}

func badReference(s string, err error) error {
	return fmt.Errorf("image reference %s: %v: %w", Quoted(s), err, errdefs.ErrInvalidArgument)
}

// CheckDigest returns an error unless d is a sha256 digest. OCI permits others, but in Kubernetes
// an image ID is always the sha256 of the config.
func CheckDigest(d digest.Digest) error {
	hex, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || !bareID.MatchString(hex) {
		text := string(d)
		if len(text) > 100 {
			text = text[:100] + "..."
		}
		return errors.New("not a sha256 digest: " + fmt.Sprintf("%q", text))
	}
	return nil
}

func (t Target) Repository() string { return t.Domain + "/" + t.Path }

// String returns the fully qualified reference, as in RepoTags or RepoDigests.
func (t Target) String() string {
	if t.Digest != "" {
		return t.Repository() + "@" + t.Digest.String()
	}
	return t.Repository() + ":" + t.Tag
}

// Object returns the tag or digest for the URL of a manifest.
func (t Target) Object() string {
	if t.Digest != "" {
		return t.Digest.String()
	}
	return t.Tag
}

// IngestRef returns the name of a partial download of a blob. It contains the registry, so that a
// pull never waits for another registry's download, and cannot be corrupted by it.
func (t Target) IngestRef(d digest.Digest) string { return t.Domain + " " + string(d) }

// Short returns the start of a digest, for messages.
func Short(d digest.Digest) string {
	if s := string(d); len(s) > 19 {
		return s[:19]
	}
	return string(d)
}

// Registry returns the one name of a registry that has several, so that no other name of it leads
// around a rule, or past its credentials.
func Registry(domain string) string {
	domain = strings.TrimSuffix(strings.ToLower(domain), ":443")
	switch domain {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return domain
}
