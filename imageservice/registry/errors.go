package registry

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// StatusError is an HTTP response with an unexpected status. It unwraps to the error class of its
// code.
type StatusError struct {
	Code   int
	server string
	what   string
	detail string // text from the registry, shortened
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s answers %d %s for %s", e.server, e.Code, http.StatusText(e.Code), e.what)
	if e.detail != "" {
		s += ": " + e.detail
	}
	return s
}

func (e *StatusError) Unwrap() error {
	switch {
	case e.Code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case e.Code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case e.Code == http.StatusNotFound:
		return errdefs.ErrNotFound
	default:
		return nil
	}
}

// Busy reports whether the code means that a later request may succeed.
func Busy(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return code > 504
}

var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'<>?#]*)[?#][^\s"'<>]*`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s"'<>/@]*@`)
)

// Redact removes secrets from text for a caller or a log: query strings and user info of URLs, and
// credentials of the pull that a server may have echoed. Use it with secrets only on text from a
// server: in our own text, a redacted word would reveal that it equals the password.
func Redact(s string, secrets ...string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	s = urlQuery.ReplaceAllString(s, "$1?[redacted]")
	return urlUserinfo.ReplaceAllString(s, "$1")
}
