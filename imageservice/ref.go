package imageservice

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

// target is a parsed image reference. Either tag or digest is set: with both in the text the digest wins and the tag is forgotten,
// because nothing proves that the tag ever pointed there.
type target struct {
	domain string // host[:port] of the registry, "docker.io" for Docker Hub
	path   string // repository on that registry
	tag    string
	digest digest.Digest
}

var (
	bareID   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	idPrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
)

// parseTarget parses a reference the way docker users write it: docker.io and library/ are filled in, latest is the tag of last resort.
// An image id is not a reference: "sha256:<64 hex>" could be read as a tag of docker.io/library/sha256, and is refused.
// Every error is ErrInvalidArgument.
func parseTarget(s string) (target, error) {
	if s == "" {
		return target{}, fmt.Errorf("image: is empty: %w", errdefs.ErrInvalidArgument)
	}
	if bareID.MatchString(strings.TrimPrefix(s, "sha256:")) {
		return target{}, fmt.Errorf("%q is an image id, not a reference: %w", s, errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return target{}, badReference(s, err)
	}
	t := target{domain: reference.Domain(named), path: reference.Path(named)}
	switch r := named.(type) {
	case reference.Digested:
		t.digest = r.Digest()
		if err := checkDigest(t.digest); err != nil {
			return target{}, badReference(s, err)
		}
	case reference.Tagged:
		t.tag = r.Tag()
	default:
		t.tag = "latest"
	}
	return t, nil
}

// shown is how a reference that may be anything stands in an error.
func shown(s string) string {
	if len(s) > 256 {
		s = s[:256] + "..."
	}
	return strconv.Quote(s)
}

func badReference(s string, err error) error {
	return fmt.Errorf("image reference %s: %v: %w", shown(s), err, errdefs.ErrInvalidArgument)
}

// checkDigest accepts sha256 only. Others are legal in OCI, but an image id is the sha256 of its config everywhere in Kubernetes.
func checkDigest(d digest.Digest) error {
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

func (t target) repository() string { return t.domain + "/" + t.path }

// String is the fully qualified form: what RepoTags or RepoDigests show.
func (t target) String() string {
	if t.digest != "" {
		return t.repository() + "@" + t.digest.String()
	}
	return t.repository() + ":" + t.tag
}

// object is what stands in the URL of a manifest.
func (t target) object() string {
	if t.digest != "" {
		return t.digest.String()
	}
	return t.tag
}
