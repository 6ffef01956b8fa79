package table

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// NewID returns 64 random hexadecimal digits, the form of id that tools around Kubernetes expect.
func NewID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// idFields are the names that the CRI gives to the field of an id.
var idFields = map[string]string{"pod": "pod_sandbox_id", "container": "container_id"}

// expand returns the one key of all that is id or begins with it. ErrInvalidArgument when id is
// empty or fits several, ErrNotFound when it fits none. A string that is no id can be no path
// either: it is only ever compared.
func expand[V any](kind, id string, all map[string]V) (string, error) {
	if id == "" {
		return "", fmt.Errorf("%s: is empty: %w", idFields[kind], errdefs.ErrInvalidArgument)
	}
	if _, ok := all[id]; ok {
		return id, nil
	}
	found := ""
	for k := range all {
		if !strings.HasPrefix(k, id) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("%s: %q matches several ids: %w", idFields[kind], id, errdefs.ErrInvalidArgument)
		}
		found = k
	}
	if found == "" {
		return "", fmt.Errorf("%s %s: %w", kind, Short(id), errdefs.ErrNotFound)
	}
	return found, nil
}

// Short keeps an error readable whatever was sent as an id.
func Short(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%q...", s[:80])
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
