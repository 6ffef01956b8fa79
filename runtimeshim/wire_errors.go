package runtimeshim

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// wireError is an error that crossed the wire: the sentence and its class.
type wireError struct {
	Class   string `json:"class"`
	Message string `json:"message"`
}

func (e *wireError) Error() string { return e.Message }

// Unwrap returns the errdefs value of the class, nil for none.
func (e *wireError) Unwrap() error {
	for _, c := range wireClasses {
		if c.name == e.Class {
			return c.err
		}
	}
	return nil
}

// wireClasses: the first that matches an error is its class.
var wireClasses = []struct {
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

func toWire(err error) *wireError {
	e := &wireError{Class: "unknown", Message: err.Error()}
	for _, c := range wireClasses {
		if errors.Is(err, c.err) {
			e.Class = c.name
			break
		}
	}
	if e.Class == "unknown" && outOfResources(err) {
		e.Class = "resource_exhausted"
	}
	return e
}

// outOfResources: the machine has no more of something, and may have later.
func outOfResources(err error) bool {
	for _, no := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
