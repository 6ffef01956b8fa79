package server

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/cribox/cribox/internal/guard"
)

const (
	// pieceSize is the number of bytes of items in one message of a list stream: large enough that
	// the number of messages does not matter, and far below maxMessage.
	pieceSize = 1 << 20
	// itemFrame is an upper bound of the bytes of tag and length before an item.
	itemFrame = 16
	// listLimit is how long a client may take to read a whole list. The kubelet gives up after two
	// minutes.
	listLimit = 3 * time.Minute
)

// sendPieces sends a list as a stream (CRI StreamImages and similar calls): every item once, in
// messages of about pieceSize bytes with at least one item. An empty list sends no message. The
// function message creates a message from its items. For errors see sendAll.
func sendPieces[T proto.Message, M any](s *Server,
	to grpc.ServerStreamingServer[M], items []T, message func([]T) *M) error {
	var pieces [][]T
	for len(items) > 0 {
		n := piece(items)
		pieces = append(pieces, items[:n])
		items = items[n:]
	}
	return sendAll(s, to, pieces, message)
}

// sendAll sends a message with each piece of a list. It returns ErrUnavailable if the daemon ends,
// and context.DeadlineExceeded if the client does not read the list within listLimit.
func sendAll[P, M any](s *Server, to grpc.ServerStreamingServer[M], pieces []P, message func(P) *M) error {
	ctx, cancel := context.WithTimeout(to.Context(), listLimit)
	defer cancel()
	for _, p := range pieces {
		if err := s.push(ctx, to, message(p)); err != nil {
			return err
		}
	}
	return nil
}

// piece returns how many items fit into one message of pieceSize; at least one.
func piece[T proto.Message](items []T) int {
	size := 0
	for i, item := range items {
		if size += proto.Size(item) + itemFrame; size > pieceSize && i > 0 {
			return i
		}
	}
	return len(items)
}

// push sends a message, and returns early with an error if ctx or the daemon ends: SendMsg alone
// would block for as long as a client is connected and does not read. After an error the handler
// must return, which also ends the blocked SendMsg.
func (s *Server) push(ctx context.Context, to grpc.ServerStream, message any) error {
	sent := make(chan error, 1)
	go func() {
		sent <- guard.Call(ctx, "a message to a client", func() error { return to.SendMsg(message) })
	}()
	select {
	case err := <-sent:
		return err
	case <-s.ending:
		return errEnding
	case <-ctx.Done():
		return slow(ctx)
	}
}

// slow returns the error for a stream whose context ended.
func slow(ctx context.Context) error {
	return fmt.Errorf("the client is gone or does not read the answer: %w", context.Cause(ctx))
}

// fits returns ErrResourceExhausted if the list is larger than clients accept.
func fits(method string, reply any) error {
	call := path.Base(method)
	m, ok := reply.(proto.Message)
	if !ok || !strings.HasPrefix(call, "List") {
		return nil
	}
	if n := proto.Size(m); n > maxMessage {
		return fmt.Errorf("the answer to %s has %d bytes, and a client accepts %d: ask with a filter, "+
			"or ask for the list as a stream (feature gate CRIListStreaming): %w",
			call, n, maxMessage, errdefs.ErrResourceExhausted)
	}
	return nil
}
