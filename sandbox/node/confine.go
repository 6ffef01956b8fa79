package node

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/apparmor"
	"github.com/cribox/cribox/sandbox/spec/seccomp"
	"github.com/cribox/cribox/sandbox/table"
)

// HasAppArmor says whether this kernel confines by AppArmor.
func HasAppArmor() bool { return apparmor.Enabled() }

// AppArmorParser returns the path of the program that loads the default profile;
// ErrFailedPrecondition when it is not installed.
func AppArmorParser() (string, error) { return apparmor.Parser() }

// defaultProfile is the AppArmor profile of containers that name none, on its way into the kernel.
type defaultProfile struct {
	settled chan struct{} // closed when the first try has ended
	missing error         // why it is not there; read after settled
}

// profileLimit is longer than a parser may take.
const profileLimit = 30 * time.Second

// loadProfile gives a kernel that confines by AppArmor the default profile. Nobody waits for it but
// the first pod.
func (n *Node) loadProfile(ctx context.Context) {
	n.profile.settled = make(chan struct{})
	go func() {
		defer close(n.profile.settled)
		if !n.host.AppArmor {
			return
		}
		err := guard.Call(ctx, "loading the AppArmor profile", func() error { return apparmor.Load(ctx) })
		if err == nil {
			return
		}
		if have, _ := apparmor.Loaded(apparmor.Default); have {
			log.G(ctx).WithError(err).Warn("cannot load the default AppArmor profile; keeping the one that is already loaded")
			return
		}
		n.profile.missing = err
		log.G(ctx).WithError(err).Warn("cannot load the default AppArmor profile; " +
			"containers without a profile run unconfined")
	}()
}

// defaultAppArmor returns the name of the default profile, or why there is none. Until that is
// known it is taken for loaded; whoever goes on to make a process waits with awaitProfile first.
func (n *Node) defaultAppArmor() (name, missing string) {
	select {
	case <-n.profile.settled:
		if n.profile.missing != nil {
			return "", n.profile.missing.Error()
		}
	default:
	}
	return apparmor.Default, ""
}

func (n *Node) AwaitProfile(ctx context.Context) error {
	select {
	case <-n.profile.settled:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("load the default AppArmor profile: %w", ctx.Err())
	}
}

// HasProfile refuses a process whose AppArmor profile the kernel does not have: the OCI runtime
// would do so only when the process starts. The default one is loaded again if somebody has taken
// it away.
func (n *Node) HasProfile(ctx context.Context, s *specs.Spec) error {
	name := s.Process.ApparmorProfile
	if name == "" || name == "unconfined" {
		return nil
	}
	have, err := apparmor.Loaded(name)
	if err != nil || have {
		return err
	}
	if name == apparmor.Default {
		_, err := n.flights.Do(ctx, "loading the AppArmor profile",
			profileLimit, func(ctx context.Context) (string, error) { return "", apparmor.Load(ctx) })
		return err
	}
	return fmt.Errorf("security_context.apparmor: the profile %q is not loaded on this node: %w",
		table.Short(name), errdefs.ErrFailedPrecondition)
}

// ReadSeccomp reads the seccomp profile at a path of this machine; "" is none.
func ReadSeccomp(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("security_context.seccomp.localhost_ref: %w", BlameHost(err))
	}
	if !info.Mode().IsRegular() || info.Size() > seccomp.MaxFile {
		return nil, fmt.Errorf("security_context.seccomp.localhost_ref: %s is not a regular file of at most %d bytes: %w",
			path, seccomp.MaxFile, errdefs.ErrInvalidArgument)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("security_context.seccomp.localhost_ref: %w", BlameHost(err))
	}
	return b, nil
}
