package node

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// BlameHost gives what looking at a path of the host came to a class: ErrUnavailable for a file
// system that does not answer (a dead FUSE or NFS server), ErrInvalidArgument for what is the
// path's own fault.
func BlameHost(err error) error {
	for _, down := range []error{unix.ENOTCONN, unix.ESTALE, unix.EIO, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.EHOSTUNREACH,
		unix.ECONNABORTED, unix.ENOMEM} {
		if errors.Is(err, down) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
	}
	return Classify(err, errdefs.ErrInvalidArgument)
}

// Classify gives an error a class, unless it is a want of space or descriptors, which is nobody's
// mistake.
func Classify(err, class error) error {
	for _, want := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, want) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", err, class)
}
