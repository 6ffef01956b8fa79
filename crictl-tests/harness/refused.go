package harness

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Localhost is a profile that is a file of this host.
func Localhost(path string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: path}
}

// BadRequest is one row: a change to a right request of type *R. The answer is code, which is
// InvalidArgument when it is left out, and names field.
type BadRequest[R any] struct {
	Name   string
	Change func(R)
	Field  string
	Code   codes.Code
}

// WantRefused asks with every row's change to a right request. What is answered without an error is
// handed to undo.
func WantRefused[R, A any](t *testing.T, rows []BadRequest[R], right func() R, ask func(R) (A, error), undo func(A)) {
	t.Helper()
	for _, row := range rows {
		r := right()
		row.Change(r)
		answer, err := ask(r)
		if err == nil {
			undo(answer)
		}
		want := row.Code
		if want == codes.OK {
			want = codes.InvalidArgument
		}
		message := status.Convert(err).Message()
		if status.Code(err) != want || !strings.Contains(message, row.Field) {
			t.Errorf("%s: want %s that names %q, got: %.300v", row.Name, want, row.Field, err)
		}
		if len(message) > 2000 {
			t.Errorf("%s: a message of %d bytes", row.Name, len(message))
		}
	}
}
