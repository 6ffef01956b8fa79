package server

import (
	"google.golang.org/protobuf/proto"

	"github.com/cribox/cribox/sandbox"
)

// withEncoded adds to m the fields of part, a message of the same type that is encoded once and
// kept in e: most of what a list costs is the encoding of labels and annotations. Fields may come
// in any order, so the bytes go where a message has the fields that its reader does not know; m's
// own getters do not see them.
func withEncoded[M proto.Message](m M, e *sandbox.Encoded, part func() M) M {
	m.ProtoReflect().SetUnknown(e.Bytes(func() []byte { return encode(part()) }))
	return m
}

// encode encodes what is part of a request, which was encoded as a whole before it was recorded.
func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // costs this answer
	}
	return b
}
