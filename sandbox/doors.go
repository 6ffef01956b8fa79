package sandbox

import (
	"context"
	"net"
	"os"
	"syscall"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/runtimeshim"
)

// What pods and containers need of the rest of cribox; images are rootfs.Images. Of the packages named here sandbox uses the
// words, which are data, and calls nothing: another runtime, image store or network that speaks
// them can take the place of ours.

// Runtime runs tasks: the pause processes of pods, and containers. A task is known by its id. What
// is said of each method is in runtimeshim/client.
type Runtime interface {
	Start(ctx context.Context, s runtimeshim.Start) (runtimeshim.Task, error)
	Tasks(ctx context.Context) ([]runtimeshim.Task, error)
	Kill(ctx context.Context, id string, signal syscall.Signal, all bool) error
	Update(ctx context.Context, u runtimeshim.Update) error
	Release(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error

	Exec(ctx context.Context, e runtimeshim.Exec) (int32, error)
	Attach(ctx, leave context.Context, id string, out, errs *os.File, attached func()) error
	Streams(ctx context.Context, id string) (runtimeshim.Streams, error)
	ReopenLog(ctx context.Context, id string) error

	Namespaces(id string, kinds ...string) ([]*os.File, error)
	Peers(ctx context.Context) ([]int, error) // the processes of the runtime itself, which nobody ends
	Close() error
}

// Network connects network namespaces.
type Network interface {
	Ready() error
	Status(ctx context.Context) cni.Status
	SetPodCIDR(cidr string) error

	NewNetNS(path string) error
	PinNetNS(path string, ns *os.File) error
	RemoveNetNS(path string) error
	Setup(ctx context.Context, pod cni.Pod) (cni.Result, error)
	Teardown(ctx context.Context, pod cni.Pod) error
	Dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error)

	Debts() []string
	CollectGarbage(ctx context.Context, connected []string) error
}
