package wire

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim/helper"
)

// remoteError is an error received from the peer: its message and its errdefs class.
type remoteError struct {
	Class   string `json:"class"`
	Message string `json:"message"`
}

func (e *remoteError) Error() string { return e.Message }

// Unwrap returns the errdefs error of the class, nil if there is none.
func (e *remoteError) Unwrap() error {
	for _, c := range classes {
		if c.name == e.Class {
			return c.err
		}
	}
	return nil
}

// classes maps names on the wire to errdefs errors; the first entry that matches an error is used.
var classes = []struct {
	name string
	err  error
}{
	{"not_found", errdefs.ErrNotFound},
	{"invalid_argument", errdefs.ErrInvalidArgument},
	{"already_exists", errdefs.ErrAlreadyExists},
	{"failed_precondition", errdefs.ErrFailedPrecondition},
	{"resource_exhausted", errdefs.ErrResourceExhausted},
	{"permission_denied", errdefs.ErrPermissionDenied},
	{"data_loss", errdefs.ErrDataLoss},
	{"not_implemented", errdefs.ErrNotImplemented},
	{"aborted", errdefs.ErrAborted},
	{"deadline_exceeded", context.DeadlineExceeded},
	{"canceled", context.Canceled},
	{"unavailable", errdefs.ErrUnavailable},
}

func toWire(err error) *remoteError {
	e := &remoteError{Class: "unknown", Message: err.Error()}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			e.Class = c.name
			break
		}
	}
	if e.Class == "unknown" && helper.OutOfResources(err) {
		e.Class = "resource_exhausted"
	}
	return e
}
