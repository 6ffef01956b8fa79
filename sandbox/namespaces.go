package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

// A container joins namespaces of its pod's pause process, or of another container. Between the
// moment in which its spec is written and its start that process may end, and another one may get
// its number: of the host, say. So the spec never names a process. The namespaces are pinned as
// files of the pod or the container, after it was seen that they are those of the process that is
// meant, and end with these.

// namespaces pins the namespaces that the containers of a pod join.
type namespaces struct {
	layout layout.Layout
	table  *table.Table
	shim   Runtime
	turns  keyed.Turns // by pod
}

// pauseKinds are the namespaces that the pause process may have of its own for the containers, by
// their names in /proc/PID/ns.
var pauseKinds = []string{"ipc", "uts", "pid"}

// pinPause pins the namespaces of the pause process, once for each pod. ErrFailedPrecondition when
// it has ended.
func (n *namespaces) pinPause(ctx context.Context, id string) error {
	done, err := n.turns.Take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if pinned, err := isThere(filepath.Join(n.layout.PauseNS(id), ".all")); err != nil || pinned {
		return err
	}
	files, err := n.shim.Namespaces(id, pauseKinds...)
	if err != nil {
		return fmt.Errorf("namespaces of pod %s: %w", id, err)
	}
	if err := os.MkdirAll(n.layout.PauseNS(id), 0o700); err != nil {
		return errors.Join(err, closeFiles(files))
	}
	for i, kind := range pauseKinds {
		err = errors.Join(err, pinUnlessOurs(files[i], kind, filepath.Join(n.layout.PauseNS(id), kind)))
	}
	if err = errors.Join(err, closeFiles(files)); err != nil {
		return fmt.Errorf("namespaces of pod %s: %w", id, err)
	}
	return os.WriteFile(filepath.Join(n.layout.PauseNS(id), ".all"), nil, 0o600)
}

// pinUnlessOurs pins a namespace. The host's own needs no name: no spec has it.
func pinUnlessOurs(ns *os.File, kind, path string) error {
	theirs, err := ns.Stat()
	if err != nil {
		return err
	}
	ours, err := os.Stat("/proc/self/ns/" + kind)
	if err != nil || os.SameFile(ours, theirs) {
		return err
	}
	return userns.Pin(ns, path)
}

func closeFiles(files []*os.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// pinTarget pins the PID namespace of the container that c asks to share one with (NamespaceMode
// TARGET), and returns where; "" when it asks for none. ErrFailedPrecondition when that container
// does not run.
func (n *namespaces) pinTarget(c *table.ContainerEntry) (string, error) {
	target, err := n.target(c)
	if target == nil || err != nil {
		return "", err
	}
	files, err := n.shim.Namespaces(target.ID, "pid")
	if err != nil {
		return "", fmt.Errorf("namespace_options.target_id: container %s: %w", target.ID, err)
	}
	path := n.layout.TargetNS(c.PodID, c.ID)
	err = os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = userns.Pin(files[0], path)
	}
	return path, errors.Join(err, closeFiles(files))
}

// target returns the container whose PID namespace c asks to share, nil for none.
func (n *namespaces) target(c *table.ContainerEntry) (*table.Container, error) {
	ns := c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil, nil
	}
	target, err := n.table.Container(ns.GetTargetId())
	if err != nil {
		return nil, fmt.Errorf("namespace_options.target_id: %w", err)
	}
	if target.PodID != c.PodID {
		return nil, fmt.Errorf("namespace_options.target_id: container %s is in another pod: %w", target.ID, errdefs.ErrInvalidArgument)
	}
	if !target.Running() {
		return nil, fmt.Errorf("namespace_options.target_id: container %s is %s: %w", target.ID, target.State, errdefs.ErrFailedPrecondition)
	}
	return &target, nil
}

// numbered is how an earlier version named the namespaces of a process in a spec.
var numbered = regexp.MustCompile(`"path":"/proc/\d+/ns/(ipc|uts|pid)"`)

// withoutNumbers returns a spec that names no process. One that an earlier version has written did,
// which may be another process by now.
func (n *namespaces) withoutNumbers(ctx context.Context, p *store.Pod, c *table.ContainerEntry, spec []byte) ([]byte, error) {
	if !numbered.Match(spec) {
		return spec, nil
	}
	if err := n.pinPause(ctx, p.ID); err != nil {
		return nil, err
	}
	shared, err := n.pinTarget(c)
	if err != nil {
		return nil, err
	}
	return numbered.ReplaceAllFunc(spec, func(old []byte) []byte {
		kind := string(numbered.FindSubmatch(old)[1])
		path := filepath.Join(n.layout.PauseNS(p.ID), kind)
		if kind == "pid" && shared != "" {
			path = shared
		}
		return fmt.Appendf(nil, `"path":%q`, path)
	}), nil
}

// unpin removes what pinPause and pinTarget have made in the folder of a pod.
func unpin(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, kind := range pauseKinds {
		err = errors.Join(err, userns.Unpin(filepath.Join(folder, "ns", kind)))
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, userns.Unpin(filepath.Join(folder, e.Name(), "pidns")))
		}
	}
	return err
}
