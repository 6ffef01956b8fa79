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

// classes are what an error can be said to be. Of those in one error the outermost counts: it was
// chosen where the most was known.
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

// causes count only in an error without a class: a shim that is slow is Unavailable, and must not
// be taken for a command that timed out.
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

// codeOf returns the code of the outermost class; ok is false for an error without one. A class
// that stands beside other errors (fmt.Errorf with two %w) is theirs together. Of errors that stand
// beside each other without one (errors.Join) the first with a class counts, but NotFound only
// where all are: to a kubelet it means that a stop or a removal has succeeded.
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

// class looks at err itself, not at what it wraps.
func class(err error) (codes.Code, bool) {
	if err == nil || !reflect.TypeOf(err).Comparable() {
		return 0, false
	}
	code, ok := classes[err]
	return code, ok
}

// withCode gives the error of a call its gRPC code, the only place where one is chosen. An error
// without a class is Internal, but Unknown from PullImage: only then does a kubelet recognise
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
