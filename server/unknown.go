package server

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxUnknown is how many different unknown fields are counted separately; all others are counted
// together. A new version of the API adds only a few fields, but a client may invent any number.
const maxUnknown = 256

// unknownFields counts fields of requests that this version of the API does not have. Requests of a
// newer kubelet are still served. If a setting has no effect, the log (once) and the verbose Status
// show the ignored field.
type unknownFields struct {
	mu  sync.Mutex // guards all; locked once per request
	all fieldCounts
}

// fieldCounts counts how often each field occurred. It has at most maxUnknown entries.
type fieldCounts struct {
	counts map[unknownField]uint64
	others uint64 // occurrences of fields that are not in counts
}

// add adds n to the count of f, and reports whether f is a new entry.
func (c *fieldCounts) add(f unknownField, n uint64) (fresh bool) {
	had, known := c.counts[f]
	if !known && len(c.counts) >= maxUnknown {
		c.others += n
		return false
	}
	if c.counts == nil {
		c.counts = map[unknownField]uint64{}
	}
	c.counts[f] = had + n
	return !known
}

type unknownField struct {
	message protoreflect.FullName
	number  protowire.Number
}

func (f unknownField) String() string { return fmt.Sprintf("%s %d", f.message, f.number) }

// see counts the unknown fields of a request, and logs each of them the first time.
func (u *unknownFields) see(ctx context.Context, request any) {
	m, ok := request.(proto.Message)
	if !ok {
		return
	}
	var here fieldCounts
	eachUnknown(m.ProtoReflect(), func(f unknownField) { here.add(f, 1) })
	if len(here.counts) == 0 {
		return
	}
	fresh, others := u.merge(here)
	for _, f := range fresh {
		log.G(ctx).Warnf("field %d of %s is unknown to this version and was ignored", f.number, f.message)
	}
	if others {
		log.G(ctx).Warnf("more than %d fields are unknown to this version and were ignored", maxUnknown)
	}
}

// merge adds the counts of one request. It returns the fields that are new, and whether this is the
// first time that there were too many different fields.
func (u *unknownFields) merge(here fieldCounts) (fresh []unknownField, others bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.all.others
	for f, n := range here.counts {
		if u.all.add(f, n) {
			fresh = append(fresh, f)
		}
	}
	u.all.others += here.others
	return fresh, before == 0 && u.all.others > 0
}

// info returns, for the verbose Status, how often each field occurred, by message and number, as
// JSON.
func (u *unknownFields) info() (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make(map[string]uint64, len(u.all.counts)+1)
	for f, n := range u.all.counts {
		all[f.String()] = n
	}
	if u.all.others > 0 {
		all["others"] = u.all.others
	}
	b, err := json.Marshal(all)
	return string(b), err
}

// eachUnknown calls found for every unknown field of m and of the messages in it. The parser limits
// the depth of messages, and so of the recursion.
func eachUnknown(m protoreflect.Message, found func(unknownField)) {
	for b := m.GetUnknown(); len(b) > 0; {
		number, _, n := protowire.ConsumeField(b)
		if n < 0 {
			break
		}
		found(unknownField{m.Descriptor().FullName(), number})
		b = b[n:]
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					eachUnknown(v.Message(), found)
					return true
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				eachUnknown(v.List().Get(i).Message(), found)
			}
		default:
			eachUnknown(v.Message(), found)
		}
		return true
	})
}

// seeing is a stream that counts the unknown fields of its requests.
type seeing struct {
	grpc.ServerStream
	unknown *unknownFields
}

func (s seeing) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.unknown.see(s.Context(), m)
	}
	return err
}
