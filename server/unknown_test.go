package server

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// requestWith returns a request with unknown fields of these numbers.
func requestWith(numbers ...protowire.Number) proto.Message {
	var raw []byte
	for _, n := range numbers {
		raw = protowire.AppendVarint(protowire.AppendTag(raw, n, protowire.VarintType), 1)
	}
	m := &runtimeapi.VersionRequest{}
	m.ProtoReflect().SetUnknown(raw)
	return m
}

// TestUnknownFieldsAreCounted checks that the first maxUnknown fields are counted separately, and
// all others together.
func TestUnknownFieldsAreCounted(t *testing.T) {
	var u unknownFields
	wants := func(want string) {
		t.Helper()
		if got, err := u.info(); err != nil || got != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
	u.see(t.Context(), &runtimeapi.VersionRequest{})
	wants("{}")
	u.see(t.Context(), requestWith(1000, 1000, 1001))
	u.see(t.Context(), requestWith(1001))
	wants(`{"runtime.v1.VersionRequest 1000":2,"runtime.v1.VersionRequest 1001":2}`)
	var many []protowire.Number
	for n := range protowire.Number(2 * maxUnknown) {
		many = append(many, 2000+n)
	}
	u.see(t.Context(), requestWith(many...))
	u.see(t.Context(), requestWith(1000, 999))
	if got := u.all.counts[unknownField{"runtime.v1.VersionRequest", 1000}]; got != 3 || len(u.all.counts) != maxUnknown {
		t.Errorf("%d fields are told apart, 1000 came %d times", len(u.all.counts), got)
	}
	if want := uint64(2*maxUnknown - (maxUnknown - 2) + 1); u.all.others != want {
		t.Errorf("%d others, want %d", u.all.others, want)
	}
}
