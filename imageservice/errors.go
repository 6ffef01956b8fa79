package imageservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// unavailable marks an error as the registry's unavailability: nothing is wrong with the request, the same pull may succeed later.
type unavailable struct{ err error }

func (u unavailable) Error() string { return u.err.Error() }
func (u unavailable) Unwrap() error { return u.err }

// contentError marks an error that lies in the bytes the registry serves: fetching them again gives the same bytes, so they are not kept.
type contentError struct{ err error }

func (e contentError) Error() string { return e.err.Error() }
func (e contentError) Unwrap() error { return e.err }

// refuse says that the registry's content is not something we take. class is one of errdefs.
func refuse(class error, format string, args ...any) error {
	return contentError{fmt.Errorf(format+": %w", append(args, class)...)}
}

// statusError is an HTTP answer that is not the one we asked for. It unwraps to the error class of its code.
type statusError struct {
	code   int
	server string
	what   string
	detail string // the registry's own words, capped
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s answers %d %s for %s", e.server, e.code, http.StatusText(e.code), e.what)
	if e.detail != "" {
		s += ": " + e.detail
	}
	return s
}

func (e *statusError) Unwrap() error {
	switch {
	case e.code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case e.code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case e.code == http.StatusNotFound:
		return errdefs.ErrNotFound
	default:
		return nil
	}
}

// busy tells whether a code means "not now".
func busy(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return code > 504
}

// diskError gives errors of a full disk their class.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'<>?#]*)[?#][^\s"'<>]*`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s"'<>/@]*@`)
)

// redact takes the secrets out of a text that goes to a caller or a log: query strings and user info of URLs, and whatever of the
// pull's own credentials a server may have echoed. Secrets are looked for in a server's words only: in ours they would tell what
// the password is not.
func redact(s string, secrets ...string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	s = urlQuery.ReplaceAllString(s, "$1?[redacted]")
	return urlUserinfo.ReplaceAllString(s, "$1")
}

// classes are the error classes that leave this room on a pull, the first that matches wins.
var classes = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented, errdefs.ErrDataLoss, errdefs.ErrResourceExhausted,
	errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrAborted,
	errdefs.ErrUnavailable,
}

// pullError is the error a caller of Pull sees: redacted, and with exactly one class. The kubelet recognises an unavailable registry by
// the text's first word and only under gRPC code Unknown, so that one carries no class at all.
func pullError(ref string, err error) error {
	text := redact(err.Error())
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) { // our own want of descriptors, also where a registry could not be dialled
		return &classed{text: "pull " + ref + ": " + text + ": " + errdefs.ErrResourceExhausted.Error(), class: errdefs.ErrResourceExhausted}
	}
	var down unavailable
	if errors.As(err, &down) {
		return errors.New("RegistryUnavailable: pull " + ref + ": " + text)
	}
	for _, class := range classes {
		if errors.Is(err, class) {
			// The class's own words are at the end of text already, put there when it was chosen.
			return &classed{text: "pull " + ref + ": " + text, class: class}
		}
	}
	for _, class := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, class) {
			return &classed{text: "pull " + ref + ": " + text, class: class}
		}
	}
	return errors.New("pull " + ref + ": " + text)
}

type classed struct {
	text  string
	class error
}

func (c *classed) Error() string { return c.text }
func (c *classed) Unwrap() error { return c.class }
