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
	// pieceSize is how many bytes of items a message of a list stream has: enough that the number
	// of messages costs nothing, and far below maxMessage.
	pieceSize = 1 << 20
	// itemFrame is more than the tag and the length before an item.
	itemFrame = 16
	// listLimit is how long a client may take to read a whole list. The kubelet gives up after two
	// minutes.
	listLimit = 3 * time.Minute
)

// sendPieces answers a list stream (CRI StreamPodSandboxes and its like): every item once, in
// messages of about pieceSize bytes and at least one item, which message makes. No items are no
// message. ErrUnavailable when the daemon ends, context.DeadlineExceeded when the client does not
// read.
func sendPieces[T proto.Message, M any](s *Server,
	to grpc.ServerStreamingServer[M], items []T, message func([]T) *M) error {
	ctx, cancel := context.WithTimeout(to.Context(), listLimit)
	defer cancel()
	for len(items) > 0 {
		n := piece(items)
		if err := s.push(ctx, to, message(items[:n])); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// piece returns how many items, at least one, fit into a message of pieceSize.
func piece[T proto.Message](items []T) int {
	size := 0
	for i, item := range items {
		if size += proto.Size(item) + itemFrame; size > pieceSize && i > 0 {
			return i
		}
	}
	return len(items)
}

// push sends a message, or gives up when ctx or the daemon ends: a client that does not read holds
// a send up for as long as it is there. The handler has to return after an error, which ends what
// is left of the send.
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

// slow is the error of a stream whose context has ended before it.
func slow(ctx context.Context) error {
	return fmt.Errorf("the client is gone or does not read: %w", context.Cause(ctx))
}

// fits refuses a list that the client would not take. ErrResourceExhausted.
func fits(method string, reply any) error {
	call := path.Base(method)
	m, ok := reply.(proto.Message)
	if !ok || !strings.HasPrefix(call, "List") {
		return nil
	}
	if n := proto.Size(m); n > maxMessage {
		return fmt.Errorf("%s has %d bytes to answer, and a client takes %d: ask with a filter, "+
			"or for the list as a stream (feature gate CRIListStreaming): %w",
			call, n, maxMessage, errdefs.ErrResourceExhausted)
	}
	return nil
}
