package server

import (
	"google.golang.org/protobuf/proto"

	"github.com/cribox/cribox/sandbox"
)

// withEncoded adds the fields of part, a message of the same type, to m. part is encoded once and
// the bytes are kept in e, because most of the cost of a list is the encoding of labels and
// annotations. The bytes become unknown fields of m: fields may come in any order, so clients
// decode them as usual, but m's own getters do not see them.
func withEncoded[M proto.Message](m M, e *sandbox.Encoded, part func() M) M {
	m.ProtoReflect().SetUnknown(e.Bytes(func() []byte { return encode(part()) }))
	return m
}

// encode encodes a part of a recorded request. This cannot fail, because the whole request has been
// encoded before.
func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // fails only this request
	}
	return b
}
