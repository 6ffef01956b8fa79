package registry

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// StatusError is an HTTP answer that is not the one we asked for. It unwraps to the error class of
// its code.
type StatusError struct {
	Code   int
	server string
	what   string
	detail string // the registry's own words, capped
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

// Busy tells whether a code means "not now".
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

// Redact takes the secrets out of a text that goes to a caller or a log: query strings and user
// info of URLs, and whatever of the pull's own credentials a server may have echoed. Secrets are
// looked for in a server's words only: in ours they would tell what the password is not.
func Redact(s string, secrets ...string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	s = urlQuery.ReplaceAllString(s, "$1?[redacted]")
	return urlUserinfo.ReplaceAllString(s, "$1")
}
