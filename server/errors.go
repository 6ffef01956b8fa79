package server

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// classes are tried in order: the first that an error belongs to gives the code. A class that somebody chose comes before what may only be
// its cause: a shim that is slow is Unavailable, and must not be taken for a command that timed out.
var classes = []struct {
	is   error
	code codes.Code
}{
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrUnauthenticated, codes.Unauthenticated},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrAborted, codes.Aborted},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrInternal, codes.Internal},
	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{unix.EMFILE, codes.ResourceExhausted},
	{unix.ENFILE, codes.ResourceExhausted},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// withCode gives the error of a call its gRPC code, the only place where one is chosen. An error without a class is Internal, but Unknown from
// PullImage: only then does a kubelet recognise RegistryUnavailable and SignatureValidationFailed by their text
// (pkg/kubelet/images/image_manager.go, evalCRIPullErr).
func withCode(call string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, c := range classes {
		if errors.Is(err, c.is) {
			return status.Error(c.code, err.Error())
		}
	}
	if call == "PullImage" {
		return status.Error(codes.Unknown, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}
