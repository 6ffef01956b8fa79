package spec

import (
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// IDs is a range of ids: those from 0 on in a user namespace, which are those from First on
// outside.
type IDs struct{ First, Length uint32 }

// UserNamespace returns the ids of the pod's user namespace; ok is false for a pod in the host's.
// The request was checked.
func UserNamespace(p *runtimeapi.PodSandboxConfig) (uids, gids IDs, ok bool) {
	u := podNamespace(p).GetUsernsOptions()
	if u == nil || u.GetMode() != runtimeapi.NamespaceMode_POD || len(u.GetUids()) != 1 || len(u.GetGids()) != 1 {
		return IDs{}, IDs{}, false
	}
	return idsOf(u.GetUids()[0]), idsOf(u.GetGids()[0]), true
}

func idsOf(m *runtimeapi.IDMapping) IDs { return IDs{First: m.GetHostId(), Length: m.GetLength()} }

func (d *draft) inUserNamespace() bool {
	_, _, ok := UserNamespace(d.pod.Config)
	return ok
}

// userNamespace joins the pod's. Its mappings are not repeated: an OCI runtime reads them from the
// namespace.
func (d *draft) userNamespace() {
	if d.pod.UserNS != "" {
		d.addNamespace(specs.UserNamespace, d.pod.UserNS)
	}
}

// CheckMapped refuses a user or group that the pod's user namespace does not have.
func CheckMapped(p *runtimeapi.PodSandboxConfig, u specs.User) error {
	uids, gids, ok := UserNamespace(p)
	if !ok {
		return nil
	}
	if u.UID >= uids.Length {
		return check.Invalid("user", "%d is not mapped; the pod's user namespace has the users 0 to %d", u.UID, uids.Length-1)
	}
	for _, g := range u.AdditionalGids {
		if g >= gids.Length {
			return check.Invalid("group", "%d is not mapped; the pod's user namespace has the groups 0 to %d", g, gids.Length-1)
		}
	}
	return nil
}

func checkUserNamespace(field string, u *runtimeapi.UserNamespace) error {
	if u == nil {
		return nil
	}
	mappings := []struct {
		field string
		list  []*runtimeapi.IDMapping
	}{{field + ".uids", u.GetUids()}, {field + ".gids", u.GetGids()}}
	for _, m := range mappings {
		if err := checkIDMappings(m.field, m.list); err != nil {
			return err
		}
		if err := checkHostIDs(m.field, m.list); err != nil {
			return err
		}
	}
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids()) > 0 || len(u.GetGids()) > 0 {
			return check.Invalid(field, "mode NODE cannot have mappings")
		}
		return nil
	case runtimeapi.NamespaceMode_POD:
		for _, m := range mappings {
			if len(m.list) != 1 {
				return check.Invalid(m.field, "has %d mappings; exactly one is supported", len(m.list))
			}
			if m.list[0].GetContainerId() != 0 {
				return check.Invalid(m.field, "id 0 of the container is not mapped")
			}
		}
		return nil
	}
	return check.Invalid(field+".mode", "%s is not a mode of user namespaces", u.GetMode())
}

// checkUserNamespacePod: who has all of the host, or sees its processes or its IPC, is not confined
// by other ids.
func checkUserNamespacePod(p *runtimeapi.PodSandboxConfig, h Host) error {
	if _, _, ok := UserNamespace(p); !ok {
		return nil
	}
	const field = "linux.security_context."
	o := podNamespace(p)
	switch {
	case o.GetPid() == runtimeapi.NamespaceMode_NODE:
		return check.Invalid(field+"namespace_options.pid", "a pod in the host's PID namespace cannot have a user namespace")
	case o.GetIpc() == runtimeapi.NamespaceMode_NODE:
		return check.Invalid(field+"namespace_options.ipc", "a pod in the host's IPC namespace cannot have a user namespace")
	}
	if h.NoUserNamespaces != "" {
		return fmt.Errorf("%snamespace_options.userns_options: this machine cannot make user namespaces: %s: %w",
			field, h.NoUserNamespaces, errdefs.ErrFailedPrecondition)
	}
	if o.GetNetwork() == runtimeapi.NamespaceMode_NODE && !h.RecursiveReadOnly {
		return fmt.Errorf("%snamespace_options.userns_options: "+
			"a pod in the host's network needs recursive read-only mounts for /sys, "+
			"so Linux 5.12 and an OCI runtime that supports them: %w",
			field, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// checkUserNamespaceContainer: the namespace is the pod's. A container that says nothing follows
// it.
func checkUserNamespaceContainer(p *runtimeapi.PodSandboxConfig, u *runtimeapi.UserNamespace, h Host) error {
	const field = "linux.security_context.namespace_options.userns_options"
	uids, gids, ok := UserNamespace(p)
	if u == nil {
		return checkUserNamespacePod(p, h)
	}
	if ok != (u.GetMode() == runtimeapi.NamespaceMode_POD) {
		return check.Invalid(field+".mode", "is %s, but the pod's mode is not", u.GetMode())
	}
	if ok && (idsOf(u.GetUids()[0]) != uids || idsOf(u.GetGids()[0]) != gids) {
		return check.Invalid(field, "the mappings are not those of the pod")
	}
	return checkUserNamespacePod(p, h)
}

// checkHostIDs: nobody in a pod is root outside, or the id that means no id, which the kernel
// refuses. That the ids of two pods do not overlap is the caller's care.
func checkHostIDs(field string, list []*runtimeapi.IDMapping) error {
	for i, m := range list {
		if m.GetHostId() == 0 {
			return check.Invalid(field, "mapping %d gives the pod root of the host", i)
		}
		if uint64(m.GetHostId())+uint64(m.GetLength()) > math.MaxUint32 ||
			uint64(m.GetContainerId())+uint64(m.GetLength()) > math.MaxUint32 {
			return check.Invalid(field, "mapping %d includes %d, which is not an id", i, uint32(math.MaxUint32))
		}
	}
	return nil
}

// checkIDMappings: no empty range, none beyond 32 bits, none that overlaps another.
func checkIDMappings(field string, list []*runtimeapi.IDMapping) error {
	const maxMappings = 340 // what the kernel takes
	if len(list) > maxMappings {
		return check.Invalid(field, "has %d mappings; the kernel's limit is %d", len(list), maxMappings)
	}
	overlap := func(a, b uint32, n, m uint32) bool {
		return uint64(a) < uint64(b)+uint64(m) && uint64(b) < uint64(a)+uint64(n)
	}
	for i, m := range list {
		if m.GetLength() == 0 {
			return check.Invalid(field, "mapping %d is empty", i)
		}
		if uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32 || uint64(m.GetContainerId())+uint64(m.GetLength()) > 1<<32 {
			return check.Invalid(field, "mapping %d goes beyond 32 bits", i)
		}
		for _, o := range list[:i] {
			if overlap(m.GetHostId(), o.GetHostId(), m.GetLength(), o.GetLength()) ||
				overlap(m.GetContainerId(), o.GetContainerId(), m.GetLength(), o.GetLength()) {
				return check.Invalid(field, "mapping %d overlaps another", i)
			}
		}
	}
	return nil
}

// checkMountMappings: ids of a mount are mapped for a pod that has ids of its own. An image's
// always are, and to nothing else.
func checkMountMappings(pod *runtimeapi.PodSandboxConfig, m *runtimeapi.Mount) error {
	if err := checkIDMappings("mounts.uidMappings", m.GetUidMappings()); err != nil {
		return err
	}
	if err := checkIDMappings("mounts.gidMappings", m.GetGidMappings()); err != nil {
		return err
	}
	if len(m.GetUidMappings()) == 0 && len(m.GetGidMappings()) == 0 {
		return nil
	}
	if len(m.GetUidMappings()) == 0 || len(m.GetGidMappings()) == 0 {
		return check.Invalid("mounts.uidMappings", "must be set together with gidMappings")
	}
	uids, gids, ok := UserNamespace(pod)
	if !ok {
		return check.Invalid("mounts.uidMappings", "are set although the pod has no user namespace")
	}
	if m.GetImage() != nil && !(sameIDs(m.GetUidMappings(), uids) && sameIDs(m.GetGidMappings(), gids)) {
		return check.Invalid("mounts.uidMappings", "of an image are not those of the pod")
	}
	return nil
}

// sameIDs tells whether a list of mappings is that of a user namespace.
func sameIDs(list []*runtimeapi.IDMapping, ids IDs) bool {
	return len(list) == 1 && list[0].GetContainerId() == 0 && idsOf(list[0]) == ids
}

// ociMappings is a list of mappings in the words of the OCI runtime spec.
func ociMappings(list []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, m := range list {
		all = append(all, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return all
}

// Owner is a user and group of the host.
type Owner struct{ UID, GID int }

// RootOf returns who root in the pod is on the host.
func RootOf(c *runtimeapi.PodSandboxConfig) Owner {
	uids, gids, _ := UserNamespace(c)
	return Owner{int(uids.First), int(gids.First)}
}
