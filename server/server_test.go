package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server/streaming"
)

func TestCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("connect pod 3f2a: %w", err) }
	for _, c := range []struct {
		call string
		err  error
		want codes.Code
	}{
		{"RunPodSandbox", nil, codes.OK},
		{"RunPodSandbox", wrap(errdefs.ErrInvalidArgument), codes.InvalidArgument},
		{"ContainerStatus", wrap(errdefs.ErrNotFound), codes.NotFound},
		{"StartContainer", wrap(errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{"PullImage", wrap(errdefs.ErrDataLoss), codes.DataLoss},
		{"CreateContainer", wrap(unix.ENOSPC), codes.ResourceExhausted},
		{"ExecSync", wrap(context.DeadlineExceeded), codes.DeadlineExceeded},
		{"ExecSync", wrap(context.Canceled), codes.Canceled},
		// A slow shim must not look like a command that timed out.
		{"ExecSync", fmt.Errorf("%w: %w", errdefs.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		// The kubelet recognises this error by its text, and only if the code is Unknown.
		{"PullImage", errors.New("RegistryUnavailable: no route"), codes.Unknown},
		{"StopContainer", errors.New("who knows"), codes.Internal},
		{"Exec", status.Error(codes.Unimplemented, "later"), codes.Unimplemented},
	} {
		if got := status.Code(withCode(c.call, c.err)); got != c.want {
			t.Errorf("%s: %v has code %s, want %s", c.call, c.err, got, c.want)
		}
	}
}

// TestOutermostClass checks that a wrapped cause never decides the code, so that for example a
// failed stop does not look like a success.
func TestOutermostClass(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("going on: %w", err) }
	both := func(cause, class error) error { return fmt.Errorf("act: %w: %w", cause, class) }
	missing := wrap(errdefs.ErrNotFound)
	plain := errors.New("the disk burns")
	for name, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"a NotFound inside an Internal":          {both(missing, errdefs.ErrInternal), codes.Internal},
		"a NotFound inside an Unavailable":       {wrap(both(wrap(missing), errdefs.ErrUnavailable)), codes.Unavailable},
		"an InvalidArgument inside a NotFound":   {both(wrap(errdefs.ErrInvalidArgument), errdefs.ErrNotFound), codes.NotFound},
		"the class before its cause":             {fmt.Errorf("%w: %w", errdefs.ErrAborted, missing), codes.Aborted},
		"the class said twice":                   {both(both(missing, errdefs.ErrAborted), errdefs.ErrDataLoss), codes.DataLoss},
		"beside a failure without a class":       {errors.Join(plain, missing), codes.Internal},
		"before a failure without a class":       {wrap(errors.Join(missing, plain)), codes.Internal},
		"beside a failure with a class":          {errors.Join(missing, wrap(errdefs.ErrUnavailable)), codes.Unavailable},
		"nothing else":                           {wrap(errors.Join(missing, wrap(missing))), codes.NotFound},
		"the first of several":                   {errors.Join(wrap(errdefs.ErrAborted), wrap(errdefs.ErrDataLoss)), codes.Aborted},
		"a full disk inside a class":             {both(wrap(unix.ENOSPC), errdefs.ErrUnavailable), codes.Unavailable},
		"a full disk beside a missing thing":     {errors.Join(unix.ENOSPC, missing), codes.ResourceExhausted},
		"a deadline without a class":             {wrap(both(plain, context.DeadlineExceeded)), codes.DeadlineExceeded},
		"a bare class":                           {errdefs.ErrNotFound, codes.NotFound},
		"an error that cannot be the key of map": {uncomparable{"a"}, codes.Internal},
	} {
		if got := status.Code(withCode("StopContainer", c.err)); got != c.want {
			t.Errorf("%s (%v) has code %s, want %s", name, c.err, got, c.want)
		}
	}
}

type uncomparable []string

func (u uncomparable) Error() string { return u[0] }

// TestGateAndPanic checks that requests before Open are refused, and that a panic fails only one
// request.
func TestGateAndPanic(t *testing.T) {
	streams, err := streaming.Listen()
	if err != nil {
		t.Fatal(err)
	}
	s := New("test", streams, nil)
	defer s.Stop(t.Context())
	call := func(next grpc.UnaryHandler) error {
		reply, err := s.unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/Version"}, next)
		if err != nil && reply != nil {
			t.Errorf("a reply beside the error %v", err)
		}
		return err
	}
	answer := func(context.Context, any) (any, error) { return "answer", nil }
	if err := call(answer); status.Code(err) != codes.Unavailable {
		t.Errorf("before Open: %v", err)
	}
	s.Open((*sandbox.Manager)(nil), (*imageservice.Images)(nil), nil)
	if err := call(answer); err != nil {
		t.Errorf("after Open: %v", err)
	}
	if err := call(func(context.Context, any) (any, error) { panic("oops") }); status.Code(err) != codes.Internal {
		t.Errorf("after a panic: %v", err)
	}
}

// TestImageWithoutRequest checks that a container whose request is unreadable still has an image.
func TestImageWithoutRequest(t *testing.T) {
	if got := named(nil, []string{"first", "second"}).Image; got != "first" {
		t.Errorf("by its tags it is %q", got)
	}
	if got := named(nil, nil).Image; got != "" {
		t.Errorf("without tags it is %q", got)
	}
	asked := &runtimeapi.ImageSpec{Image: "asked", RuntimeHandler: "h"}
	if got := named(asked, []string{"first"}); got.Image != "first" || got.RuntimeHandler != "h" || asked.Image != "asked" {
		t.Errorf("asked for as %v it is %v", asked, got)
	}
}

func TestFilters(t *testing.T) {
	if !isID("", "abc") || !isID("ab", "abc") || isID("b", "abc") || isID("abcd", "abc") {
		t.Error("an id is fitted by its beginning alone")
	}
	have := map[string]string{"a": "1", "b": ""}
	for _, c := range []struct {
		asked map[string]string
		want  bool
	}{{nil, true}, {map[string]string{"a": "1"}, true}, {map[string]string{"a": "1", "b": ""}, true}, {map[string]string{"a": "2"}, false}, {map[string]string{"c": ""}, false}} {
		if hasLabels(c.asked, have) != c.want {
			t.Errorf("labels %v in %v: want %v", c.asked, have, c.want)
		}
	}
}

// TestCallsInTheLog checks the log levels: failed calls are warnings; frequent calls of the
// kubelet, and their NotFound, are logged at level debug.
func TestCallsInTheLog(t *testing.T) {
	missing := status.Error(codes.NotFound, "no such container")
	for _, c := range []struct {
		call string
		err  error
		want logrus.Level
	}{
		{"StartContainer", nil, logrus.InfoLevel},
		{"ContainerStatus", nil, logrus.DebugLevel},
		{"ContainerStatus", missing, logrus.DebugLevel},
		{"ContainerStatus", status.Error(codes.Unavailable, "starting"), logrus.WarnLevel},
		{"ExecSync", missing, logrus.WarnLevel},
		{"StartContainer", missing, logrus.WarnLevel},
		{"CheckpointContainer", status.Error(codes.Unimplemented, "not yet"), logrus.DebugLevel},
	} {
		logger, lines := logtest.NewNullLogger()
		logger.SetLevel(logrus.DebugLevel)
		logCall(log.WithLogger(t.Context(), logrus.NewEntry(logger)), c.call, time.Second, c.err)
		if got := lines.LastEntry(); len(lines.Entries) != 1 || got.Level != c.want {
			t.Errorf("%s, %v: %d lines, the last is %v, want one, %v", c.call, c.err, len(lines.Entries), got.Level, c.want)
		}
	}
}
