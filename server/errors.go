package server

import (
	"context"
	"errors"
	"reflect"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// classes maps error classes to gRPC codes. If an error has several classes, the outermost counts:
// it was added where most was known.
var classes = map[error]codes.Code{
	errdefs.ErrInvalidArgument:    codes.InvalidArgument,
	errdefs.ErrNotFound:           codes.NotFound,
	errdefs.ErrAlreadyExists:      codes.AlreadyExists,
	errdefs.ErrFailedPrecondition: codes.FailedPrecondition,
	errdefs.ErrPermissionDenied:   codes.PermissionDenied,
	errdefs.ErrUnauthenticated:    codes.Unauthenticated,
	errdefs.ErrResourceExhausted:  codes.ResourceExhausted,
	errdefs.ErrUnavailable:        codes.Unavailable,
	errdefs.ErrDataLoss:           codes.DataLoss,
	errdefs.ErrAborted:            codes.Aborted,
	errdefs.ErrOutOfRange:         codes.OutOfRange,
	errdefs.ErrNotImplemented:     codes.Unimplemented,
	errdefs.ErrInternal:           codes.Internal,
}

// causes apply only to an error without a class. For example, a slow shim is Unavailable: as
// DeadlineExceeded it would look like a command that timed out.
var causes = []struct {
	is   error
	code codes.Code
}{
	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{unix.EMFILE, codes.ResourceExhausted},
	{unix.ENFILE, codes.ResourceExhausted},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// codeOf returns the code of the outermost class; ok is false for an error without one. If
// fmt.Errorf wraps a class and other errors (two %w), the class applies to all of them. Of joined
// errors without a direct class (errors.Join), the first one with a code counts, but NotFound only
// if all of them are NotFound: for the kubelet it means that a stop or a removal succeeded.
func codeOf(err error) (code codes.Code, ok bool) {
	if code, ok := class(err); ok {
		return code, true
	}
	switch e := err.(type) { //nolint:errorlint // it is this function that unwraps
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return codeOf(inner)
		}
	case interface{ Unwrap() []error }:
		return codeBeside(e.Unwrap())
	}
	return 0, false
}

func codeBeside(all []error) (code codes.Code, ok bool) {
	for _, err := range all {
		if code, ok := class(err); ok {
			return code, true
		}
	}
	missing := len(all) > 0
	for _, err := range all {
		code, ok := codeOf(err)
		switch {
		case !ok:
			missing = false
		case code != codes.NotFound:
			return code, true
		}
	}
	return codes.NotFound, missing
}

// class returns the code of err itself, and ignores what err wraps.
func class(err error) (codes.Code, bool) {
	if err == nil || !reflect.TypeOf(err).Comparable() {
		return 0, false
	}
	code, ok := classes[err]
	return code, ok
}

// withCode returns err with its gRPC code; codes are chosen nowhere else. An error without a class
// is Internal, except from PullImage, where it is Unknown: only then does the kubelet recognise
// RegistryUnavailable and SignatureValidationFailed by their text
// (pkg/kubelet/images/image_manager.go, evalCRIPullErr).
func withCode(call string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if code, ok := codeOf(err); ok {
		return status.Error(code, err.Error())
	}
	for _, c := range causes {
		if errors.Is(err, c.is) {
			return status.Error(c.code, err.Error())
		}
	}
	if call == "PullImage" {
		return status.Error(codes.Unknown, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}
