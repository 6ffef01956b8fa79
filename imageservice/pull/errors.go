package pull

import (
	"context"
	"errors"

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
// The kubelet recognises an unavailable registry by the first word of the text, and only with gRPC
// code Unknown, so that error has no class.
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
