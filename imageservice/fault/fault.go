// Package fault marks why a pull fails, so that its end can be handled by class: what the registry
// serves is refused, the registry is unavailable, or the disk is full. It knows no registry and no
// image.
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

// Unavailable marks an error as the registry's unavailability: nothing is wrong with the request,
// the same pull may succeed later.
func Unavailable(err error) error { return unavailableError{err} }

// IsUnavailable tells whether an error was marked by Unavailable.
func IsUnavailable(err error) bool {
	_, ok := errors.AsType[unavailableError](err)
	return ok
}

// refusedError marks an error that lies in the bytes the registry serves: fetching them again gives
// the same bytes, so they are not kept.
type refusedError struct{ err error }

func (e refusedError) Error() string { return e.err.Error() }
func (e refusedError) Unwrap() error { return e.err }

// IsRefused tells whether an error was made by Refuse.
func IsRefused(err error) bool {
	_, ok := errors.AsType[refusedError](err)
	return ok
}

// Refuse says that the registry's content is not something we take. class is one of errdefs.
func Refuse(class error, format string, args ...any) error {
	return refusedError{fmt.Errorf(format+": %w", append(args, class)...)}
}

// Disk gives errors of a full disk their class.
func Disk(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// Clip shortens what somebody else wrote.
func Clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}
