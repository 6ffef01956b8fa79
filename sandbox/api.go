package sandbox

import (
	"context"
	"os"

	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/spec/users"
	"github.com/cribox/cribox/sandbox/stats"
	"github.com/cribox/cribox/sandbox/streams"
	"github.com/cribox/cribox/sandbox/table"
)

// What is known of pods and containers, by names that other packages can say.
type (
	Pod       = table.Pod
	Container = table.Container
	Event     = table.Event
	Encodings = table.Encodings
	Encoded   = table.Encoded
)

// What pods and containers use, by names that other packages can say.
type (
	Stats      = stats.Stats
	PodStats   = stats.PodStats
	Metrics    = stats.Metrics
	PodMetrics = stats.PodMetrics
	Interface  = stats.Interface
	Layer      = stats.Layer
	Usage      = stats.Usage
	Pressure   = stats.Pressure
	Stall      = stats.Stall
)

// What a client brings to a process, by names that other packages can say.
type (
	Streams    = streams.Streams
	Size       = streams.Size
	ExecResult = streams.ExecResult
)

// What pods and containers are made with, by names that other packages can say.
type (
	Handler      = node.Handler
	MissingPaths = node.MissingPaths
)

// What can be asked of this machine without a Manager; see package node.

// ReadHost finds out what this machine can do, user namespaces excepted.
func ReadHost() (spec.Host, error) { return node.ReadHost() }

// CheckUserNamespaces tells whether pods can have user namespaces here; mount tries to mount images
// with the ids of one.
func CheckUserNamespaces(mount func(userNS *os.File) error) (noTmpfs, err error) {
	return node.CheckUserNamespaces(mount)
}

// HasAppArmor and HasSELinux say whether this kernel confines by them.
func HasAppArmor() bool { return node.HasAppArmor() }

func HasSELinux() bool { return selinux.Enabled() }

// SELinuxKnowsContainers says whether the policy of SELinux has contexts for containers. Pods are not
// labelled where it has none.
func SELinuxKnowsContainers() bool { return selinux.KnowsContainers() }

// AppArmorParser returns the path of the program that loads the default profile;
// ErrFailedPrecondition when it is not installed.
func AppArmorParser() (string, error) { return node.AppArmorParser() }

// SystemdRuns says whether systemd is this machine's first process.
func SystemdRuns() bool { return node.SystemdRuns() }

// RemoveCgroupParent removes the cgroups of an instance's pods; see node.RemoveCgroupParent.
func RemoveCgroupParent(ctx context.Context, instance string) error {
	return node.RemoveCgroupParent(ctx, instance)
}

// ImageUser tells whom an image's USER names, as CreateContainer takes it: an id or a name; neither
// when it names nobody.
func ImageUser(user string) (uid *uint32, name string) { return users.OfImage(user) }
