package server

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/cribox/cribox/sandbox"
)

// itemField is the number of the field with the items, in all messages that carry a list of pods or
// containers.
const itemField protowire.Number = 1

// appendItem appends an item of a list to the encoded form of the message that carries the list.
func appendItem(b []byte, item proto.Message) []byte {
	b = protowire.AppendTag(b, itemField, protowire.BytesType)
	return protowire.AppendBytes(b, encode(item))
}

// withItems makes items, the encoded form of a list, the content of the empty message m. The bytes
// become unknown fields of m: clients decode them as usual, but m's own getters do not see them.
func withItems[M proto.Message](m M, items []byte) M {
	m.ProtoReflect().SetUnknown(items)
	return m
}

// whole returns the only piece of a list; nil for an empty list.
func whole(pieces [][]byte) []byte {
	if len(pieces) == 0 {
		return nil
	}
	return pieces[0]
}

// withEncoded adds the fields of part, a message of the same type, to m. part is encoded once and
// the bytes are kept in e, because most of the cost of statistics is the encoding of labels and
// annotations. The bytes become unknown fields of m, as in withItems: fields may come in any order.
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
