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

// maxUnknown is how many different unknown fields are told apart; further ones are counted
// together. There are a few with each new version of the API, whatever a client invents.
const maxUnknown = 256

// unknownFields counts what requests say that this version of the API has no field for. A newer
// kubelet is served as well as can be, and somebody who wonders why a setting does nothing finds it
// in the log, once, and in the verbose Status.
type unknownFields struct {
	mu  sync.Mutex // guards all; taken once for a request, however many fields it has
	all fieldCounts
}

// fieldCounts says how often each field was met. It stays small.
type fieldCounts struct {
	counts map[unknownField]uint64
	others uint64 // fields that found no room in counts
}

// add counts n times f, and says whether it has counts of its own since now.
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

// see counts the unknown fields of a request, and logs those that it meets for the first time.
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
		log.G(ctx).Warnf("field %d of %s is unknown to this version and ignored", f.number, f.message)
	}
	if others {
		log.G(ctx).Warnf("more than %d fields are unknown to this version and ignored", maxUnknown)
	}
}

// merge adds the counts of one request. It returns the fields that are counted since now, and
// whether this is the first request with more than there is room for.
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

// info is what the verbose Status shows: how often each field came, by message and number.
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

// eachUnknown calls found for every unknown field of m and of the messages in it. The depth is that
// of a message that was parsed, which is bounded.
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

// seeing is a stream that looks at the requests on it.
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
