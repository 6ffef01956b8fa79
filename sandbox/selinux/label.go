package selinux

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	library "github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// Labels of a pod or a container; both are "" where the policy has none for containers.
type Labels struct{ Process, Mount string }

// Options are the parts of a context that a request names; "" leaves a part as it is (CRI
// SELinuxOption).
type Options struct{ User, Role, Type, Level string }

// Enabled says whether this kernel labels by SELinux.
func Enabled() bool { return library.GetEnabled() }

// NewPod returns the labels of a pod. Their level is reserved until Release: one that no pod has,
// or the one that is asked for, which other pods may have too. There are none where the policy has
// no contexts for containers: ErrFailedPrecondition when something is asked for there.
// ErrInvalidArgument when the policy does not know what is asked for.
func NewPod(asked Options) (Labels, error) {
	own, err := newLabels()
	if err != nil {
		return Labels{}, err
	}
	if own == (Labels{}) {
		if asked != (Options{}) {
			return Labels{}, fmt.Errorf("selinux_options: the policy has no contexts for containers; "+
				"install container-selinux: %w", errdefs.ErrFailedPrecondition)
		}
		return Labels{}, nil
	}
	l, err := own.With(asked)
	if err == nil {
		err = l.check()
	}
	if err != nil {
		Release(own)
		return Labels{}, err
	}
	if asked.Level != "" {
		Release(own)
		Reserve(l)
	}
	return l, nil
}

// newLabels returns the labels of containers with a level of their own. There are none when the
// policy does not know them: Debian's names container_t and has no such type.
func newLabels() (Labels, error) {
	var l Labels
	var err error
	if l.Process, l.Mount, err = label.InitLabels(nil); err != nil {
		return Labels{}, fmt.Errorf("SELinux labels: %w", err)
	}
	if l.Process == "" {
		return Labels{}, nil
	}
	if l.check() != nil {
		Release(l)
		return Labels{}, nil
	}
	return l, nil
}

// Layers returns the label of files that every pod may read and none may write, "" where the policy
// has none.
func Layers() string {
	if !KnowsContainers() {
		return ""
	}
	files := library.ROFileLabel() //nolint:staticcheck // nothing else reads this label of the policy
	if library.SecurityCheckContext(files) != nil {
		return ""
	}
	return files
}

// KnowsContainers says whether the policy of this kernel has contexts for containers.
func KnowsContainers() bool {
	l, err := newLabels()
	Release(l)
	return err == nil && l != (Labels{})
}

// With returns the labels with parts replaced. Role and type are those of processes alone: files
// have those that the policy gives to files of containers.
func (l Labels) With(asked Options) (Labels, error) {
	if asked == (Options{}) {
		return l, nil
	}
	process, err := library.NewContext(l.Process)
	if err != nil {
		return l, fmt.Errorf("SELinux label %q: %w", l.Process, err)
	}
	files, err := library.NewContext(l.Mount)
	if err != nil {
		return l, fmt.Errorf("SELinux label %q: %w", l.Mount, err)
	}
	for _, part := range []struct {
		name, asked string
		files       bool
	}{{"user", asked.User, true}, {"role", asked.Role, false}, {"type", asked.Type, false}, {"level", asked.Level, true}} {
		if part.asked == "" {
			continue
		}
		process[part.name] = part.asked
		if part.files {
			files[part.name] = part.asked
		}
	}
	return Labels{process.Get(), files.Get()}, nil
}

// Container returns the labels of a container in a pod that has l: ErrInvalidArgument when the
// policy does not know what is asked for.
func (l Labels) Container(asked Options) (Labels, error) {
	if l.Process == "" && asked != (Options{}) {
		return l, fmt.Errorf("selinux_options: the pod has no SELinux labels: %w", errdefs.ErrFailedPrecondition)
	}
	with, err := l.With(asked)
	if err == nil && asked != (Options{}) {
		err = with.check()
	}
	return with, err
}

// check asks the kernel whether the policy knows the contexts.
func (l Labels) check() error {
	for _, context := range []string{l.Process, l.Mount} {
		if err := library.SecurityCheckContext(context); err != nil {
			return fmt.Errorf("selinux_options: the policy does not know the context %q: %w: %w",
				context, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Reserve keeps the level of labels that were made before this process was.
func Reserve(l Labels) {
	_ = library.ReserveLabelV2(l.Mount) // two pods that asked for the same level
}

// Release lets the level be given to another pod.
func Release(l Labels) { library.ReleaseLabel(l.Mount) }

// Level returns the last part of a label, "" when it has none.
func Level(l string) string {
	c, err := library.NewContext(l)
	if err != nil {
		return ""
	}
	return c["level"]
}

// Shared returns the label of files that every pod may use: without categories.
func Shared(mount string) string {
	c, err := library.NewContext(mount)
	if err != nil || mount == "" {
		return mount
	}
	c["level"], _, _ = strings.Cut(c["level"], ":")
	return c.Get()
}

// MountOptions adds the label of all files of a mount to its options.
func MountOptions(options, mount string) string { return label.FormatMountLabel(options, mount) }
