// Package imageref reads the names of images and knows nothing else about them.
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

// Target is a parsed image reference. Either tag or digest is set: with both in the text the digest
// wins and the tag is forgotten, because nothing proves that the tag ever pointed there.
type Target struct {
	Domain string // host[:port] of the registry, "docker.io" for Docker Hub
	Path   string // repository on that registry
	Tag    string
	Digest digest.Digest
}

// IsID says whether s is the hex part of an image id.
func IsID(s string) bool { return bareID.MatchString(s) }

// IsIDPrefix says whether s may be the beginning of one, or all of it.
func IsIDPrefix(s string) bool { return idPrefix.MatchString(s) }

var (
	bareID   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	idPrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
)

// Parse parses a reference the way docker users write it: docker.io and library/ are filled in,
// latest is the tag of last resort. An image id is not a reference: "sha256:<64 hex>" could be read
// as a tag of docker.io/library/sha256, and is refused. Every error is ErrInvalidArgument.
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

// Quoted is how a reference that may be anything stands in an error.
func Quoted(s string) string {
	if len(s) > 256 {
		s = s[:256] + "..."
	}
	return strconv.Quote(s)
}

func badReference(s string, err error) error {
	return fmt.Errorf("image reference %s: %v: %w", Quoted(s), err, errdefs.ErrInvalidArgument)
}

// CheckDigest accepts sha256 only. Others are legal in OCI, but an image id is the sha256 of its
// config everywhere in Kubernetes.
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

// String is the fully qualified form: what RepoTags or RepoDigests show.
func (t Target) String() string {
	if t.Digest != "" {
		return t.Repository() + "@" + t.Digest.String()
	}
	return t.Repository() + ":" + t.Tag
}

// Object is what stands in the URL of a manifest.
func (t Target) Object() string {
	if t.Digest != "" {
		return t.Digest.String()
	}
	return t.Tag
}

// IngestRef names a partial download of a blob. It is its registry's own: what one registry has
// begun, another need not wait for, and cannot spoil.
func (t Target) IngestRef(d digest.Digest) string { return t.Domain + " " + string(d) }

// Short is the beginning of a digest, for people.
func Short(d digest.Digest) string {
	if s := string(d); len(s) > 19 {
		return s[:19]
	}
	return string(d)
}
