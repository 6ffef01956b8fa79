package pull

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/registry"
)

// classes are the error classes that leave this room on a pull, the first that matches wins.
var classes = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented, errdefs.ErrDataLoss, errdefs.ErrResourceExhausted,
	errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrAborted,
	errdefs.ErrUnavailable,
}

// pullError is the error a caller of Pull sees: redacted, and with exactly one class. The kubelet
// recognises an unavailable registry by the text's first word and only under gRPC code Unknown, so
// that one carries no class at all.
func pullError(ref string, err error) error {
	text := registry.Redact(err.Error())
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) { // our own want of descriptors, also where a registry could not be dialled
		return &classed{text: "pull " + ref + ": " + text + ": " + errdefs.ErrResourceExhausted.Error(), class: errdefs.ErrResourceExhausted}
	}
	if fault.IsUnavailable(err) {
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
