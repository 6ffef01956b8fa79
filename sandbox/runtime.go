package sandbox

import (
	"context"
	"os"
	"syscall"

	"github.com/cribox/cribox/runtimeshim"
)

// Package sandbox and those below it use the types of runtimeshim, imageservice and cni, but call none
// of their functions. What they need are the interfaces Runtime, rootfs.Images and network.Network,
// so that other implementations can take their place.

// Runtime runs tasks, by id: the pause processes of pods, and containers. The methods are documented
// in runtimeshim/client.
type Runtime interface {
	Start(ctx context.Context, s runtimeshim.Start) (runtimeshim.Task, error)
	Tasks(ctx context.Context) ([]runtimeshim.Task, error)
	Task(ctx context.Context, id string) (runtimeshim.Task, error)
	Ping(ctx context.Context) error
	Kill(ctx context.Context, id string, signal syscall.Signal, all bool) error
	Update(ctx context.Context, u runtimeshim.Update) error
	Release(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error

	Exec(ctx context.Context, e runtimeshim.Exec) (int32, error)
	Attach(ctx, leave context.Context, id string, out, errs *os.File, attached func()) error
	Streams(ctx context.Context, id string) (runtimeshim.Streams, error)
	ReopenLog(ctx context.Context, id string) error

	Namespaces(id string, kinds ...string) ([]*os.File, error)
	Peers(ctx context.Context) ([]int, error) // the processes of the runtime itself, which must not be ended
	Helpers(ctx context.Context) []runtimeshim.Helper
	Close() error
}
