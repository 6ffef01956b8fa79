package sandbox

import (
	"errors"
	"fmt"
	"os"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/pause"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

// makeNamespaces makes the namespaces that are there before the pause process: the network's, and
// for a pod that has one the user namespace that it belongs to.
func (w *wires) makeNamespaces(p *table.PodEntry) error {
	uids, gids, ok := spec.UserNamespace(p.Config)
	if !ok {
		if spec.HostNetwork(p.Config) {
			return nil
		}
		return w.network.NewNetNS(w.layout.NetNS(p.ID))
	}
	ns, err := userns.New(pause.Binary(), userns.IDs(uids), userns.IDs(gids), !spec.HostNetwork(p.Config))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := userns.Pin(ns.User, w.layout.UserNS(p.ID)); err != nil {
		return err
	}
	w.step("pod.userns")
	if ns.Net == nil {
		return nil
	}
	return w.network.PinNetNS(w.layout.NetNS(p.ID), ns.Net)
}

// openUserNS opens the pod's user namespace; nil for a pod that has none.
func (m *mounts) openUserNS(p *table.PodEntry) (*os.File, error) {
	if _, _, ok := spec.UserNamespace(p.Config); !ok {
		return nil, nil
	}
	f, err := os.Open(m.layout.UserNS(p.ID))
	if err != nil {
		return nil, fmt.Errorf("user namespace of pod %s: %w", p.ID, err)
	}
	return f, nil
}

// canMap refuses a mount whose ids are to be mapped and cannot be: the OCI runtime would do so only
// when the container starts.
func (m *mounts) canMap(p *table.PodEntry, asked []*runtimeapi.Mount, found []spec.Mount) error {
	ns, err := m.openUserNS(p)
	if err != nil || ns == nil {
		return err
	}
	defer ns.Close()
	for i, a := range asked {
		if len(a.GetUidMappings()) == 0 || a.GetImage() != nil { // an image is mounted with its ids mapped
			continue
		}
		if err := userns.CanMap(found[i].Source, ns); err != nil {
			return fmt.Errorf("mount %s: %w", a.GetContainerPath(), err)
		}
	}
	return nil
}

// give makes root in the pod the owner of a file of the pod.
func give(c *runtimeapi.PodSandboxConfig, path string) error {
	root := spec.RootOf(c)
	return os.Lchown(path, root.UID, root.GID)
}

// writeFor writes a file that belongs to root in the pod.
func writeFor(c *runtimeapi.PodSandboxConfig, path string, b []byte) error {
	return errors.Join(os.WriteFile(path, b, 0o644), give(c, path))
}
