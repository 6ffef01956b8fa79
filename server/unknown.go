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

// maxUnknown is how many different unknown fields are told apart; further ones are counted together. There are a few with each new
// version of the API, whatever a client invents.
const maxUnknown = 256

// unknownFields counts what requests say that this version of the API has no field for. A newer kubelet is served as well as can be, and
// somebody who wonders why a setting does nothing finds it in the log, once, and in the verbose Status.
type unknownFields struct {
	mu     sync.Mutex
	counts map[unknownField]uint64
	others uint64
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
	eachUnknown(m.ProtoReflect(), func(f unknownField) {
		if u.count(f) {
			log.G(ctx).Warnf("field %d of %s is unknown to this version and ignored", f.number, f.message)
		}
	})
}

// count says whether the field is a new one.
func (u *unknownFields) count(f unknownField) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, known := u.counts[f]
	if !known && len(u.counts) >= maxUnknown {
		u.others++
		return u.others == 1
	}
	if u.counts == nil {
		u.counts = map[unknownField]uint64{}
	}
	u.counts[f] = n + 1
	return !known
}

// info is what the verbose Status shows: how often each field came, by message and number.
func (u *unknownFields) info() (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make(map[string]uint64, len(u.counts)+1)
	for f, n := range u.counts {
		all[f.String()] = n
	}
	if u.others > 0 {
		all["others"] = u.others
	}
	b, err := json.Marshal(all)
	return string(b), err
}

// eachUnknown calls found for every unknown field of m and of the messages in it. The depth is that of a message that was parsed, which is
// bounded.
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
