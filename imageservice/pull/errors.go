package pull

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/registry"
)

// classes are the error classes that a pull returns. If several match, the first one is used.
var classes = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented, errdefs.ErrDataLoss, errdefs.ErrResourceExhausted,
	errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition,
	errdefs.ErrAborted,
	errdefs.ErrUnavailable,
}

// pullError returns the error for the caller of Pull: without secrets, and with exactly one class.
// The kubelet recognises an unavailable registry and a refused signature by the first word of the
// text, and only with gRPC code Unknown, so these errors have no class.
func pullError(ref string, err error) error {
	text := registry.Redact(err.Error())
	// this process is out of descriptors; also if that prevented a connection
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return &classed{text: "pull " + ref + ": " + text + ": " + errdefs.ErrResourceExhausted.Error(),
			class: errdefs.ErrResourceExhausted}
	}
	if fault.IsUnavailable(err) {
		return errors.New("RegistryUnavailable: pull " + ref + ": " + text)
	}
	if errors.Is(err, fault.ErrSignature) {
		name := fault.ErrSignature.Error()
		return errors.New(name + ": pull " + ref + ": " + strings.TrimSuffix(text, ": "+name))
	}
	for _, class := range classes {
		if errors.Is(err, class) {
			// text already ends with the words of the class.
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

// results are the names of error classes in telemetry.Pulls.
var results = []struct {
	class error
	name  string
}{
	{errdefs.ErrInvalidArgument, "invalid"}, {errdefs.ErrNotImplemented, "unsupported"},
	{fault.ErrSignature, "signature"},
	{errdefs.ErrDataLoss, "wrong_content"},
	{errdefs.ErrResourceExhausted, "no_space"}, {errdefs.ErrUnauthenticated, "unauthenticated"},
	{errdefs.ErrPermissionDenied, "denied"}, {errdefs.ErrNotFound, "not_found"}, {errdefs.ErrAborted, "aborted"},
	{errNobodyWaits, "canceled"}, {context.Canceled, "canceled"},
}

// resultOf returns the name of a pull's result, from its error before pullError.
func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	if fault.IsUnavailable(err) {
		return "registry_unavailable"
	}
	for _, r := range results {
		if errors.Is(err, r.class) {
			return r.name
		}
	}
	return "other"
}
