// Package fault marks why a pull fails, so that the caller can handle it: the registry's content is
// refused, the registry is unavailable, or the disk is full. It does not know registries or images.
package fault

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

type unavailableError struct{ err error }

func (u unavailableError) Error() string { return u.err.Error() }
func (u unavailableError) Unwrap() error { return u.err }

// Unavailable marks an error as caused by an unavailable registry: the request is correct, and the
// same pull may succeed later.
func Unavailable(err error) error { return unavailableError{err} }

// IsUnavailable reports whether Unavailable has marked the error.
func IsUnavailable(err error) bool {
	_, ok := errors.AsType[unavailableError](err)
	return ok
}

// refusedError is an error in the content that the registry serves. Downloading it again would
// return the same bytes, so they are deleted.
type refusedError struct{ err error }

func (e refusedError) Error() string { return e.err.Error() }
func (e refusedError) Unwrap() error { return e.err }

// IsRefused reports whether the error was made by Refuse.
func IsRefused(err error) bool {
	_, ok := errors.AsType[refusedError](err)
	return ok
}

// ErrSignature is the class of an image that the signature policy does not accept. Its text is how
// the kubelet knows it (k8s.io/cri-api/pkg/errors).
var ErrSignature = errors.New("SignatureValidationFailed")

// Refuse returns an error for content that cribox does not accept. class is one of package errdefs,
// or ErrSignature.
func Refuse(class error, format string, args ...any) error {
	return refusedError{fmt.Errorf(format+": %w", append(args, class)...)}
}

// Disk adds the class ErrResourceExhausted to the error of a full disk or an exceeded quota.
func Disk(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// Clip shortens untrusted text for use in an error.
func Clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}
