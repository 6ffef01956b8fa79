// Package pins keeps the namespaces that containers join as files of their pod, so that no spec names
// a process.
//
// A container joins namespaces of its pod's pause process, or of another container. Between the time
// its spec is written and its start, that process may end and its number may be given to another
// process, for example of the host. So the namespaces are pinned as files, after a check that they
// are those of the intended process. They are removed with the files of the pod or the container.
package pins

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

// Pins pins the namespaces that the containers of a pod join.
type Pins struct {
	layout layout.Layout
	table  *table.Table
	open   func(id string, kinds ...string) ([]*os.File, error)
	turns  keyed.Turns // by pod
}

// New returns Pins. open opens the namespaces of a task.
func New(l layout.Layout, t *table.Table, open func(id string, kinds ...string) ([]*os.File, error)) *Pins {
	return &Pins{layout: l, table: t, open: open}
}

// pauseKinds are the namespaces that the pause process may have of its own for the containers, by
// their names in /proc/PID/ns.
var pauseKinds = []string{"ipc", "uts", "pid"}

// PinPause pins the namespaces of the pause process, once for each pod. ErrFailedPrecondition if it
// has ended.
func (p *Pins) PinPause(ctx context.Context, id string) error {
	done, err := p.turns.Take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	complete := filepath.Join(p.layout.PauseNS(id), ".all")
	if _, err := os.Lstat(complete); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	files, err := p.open(id, pauseKinds...)
	if err != nil {
		return fmt.Errorf("namespaces of pod %s: %w", id, err)
	}
	if err := os.MkdirAll(p.layout.PauseNS(id), 0o700); err != nil {
		return errors.Join(err, closeFiles(files))
	}
	for i, kind := range pauseKinds {
		err = errors.Join(err, pinUnlessOurs(files[i], kind, filepath.Join(p.layout.PauseNS(id), kind)))
	}
	if err = errors.Join(err, closeFiles(files)); err != nil {
		return fmt.Errorf("namespaces of pod %s: %w", id, err)
	}
	return os.WriteFile(complete, nil, 0o600)
}

// pinUnlessOurs pins a namespace, unless it is the host's own, which no spec names.
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

// PinTarget pins the PID namespace of the container that c asks to share one with (NamespaceMode
// TARGET) and returns the path; "" if it asks for none. ErrFailedPrecondition if that container does
// not run.
func (p *Pins) PinTarget(c *table.ContainerEntry) (string, error) {
	target, err := p.Target(c)
	if target == nil || err != nil {
		return "", err
	}
	files, err := p.open(target.ID, "pid")
	if err != nil {
		return "", fmt.Errorf("namespace_options.target_id: container %s: %w", target.ID, err)
	}
	path := p.layout.TargetNS(c.PodID, c.ID)
	err = os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = userns.Pin(files[0], path)
	}
	return path, errors.Join(err, closeFiles(files))
}

// Target returns the container whose PID namespace c asks to share, nil for none.
func (p *Pins) Target(c *table.ContainerEntry) (*table.Container, error) {
	ns := c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil, nil
	}
	target, err := p.table.Container(ns.GetTargetId())
	if err != nil {
		return nil, fmt.Errorf("namespace_options.target_id: %w", err)
	}
	if target.PodID != c.PodID {
		return nil, fmt.Errorf("namespace_options.target_id: container %s is in another pod: %w",
			target.ID, errdefs.ErrInvalidArgument)
	}
	if !target.Running() {
		return nil, fmt.Errorf("namespace_options.target_id: container %s is %s: %w",
			target.ID, target.State, errdefs.ErrFailedPrecondition)
	}
	return &target, nil
}

// numbered matches how an earlier version named the namespaces of a process in a spec.
var numbered = regexp.MustCompile(`"path":"/proc/\d+/ns/(ipc|uts|pid)"`)

// WithoutNumbers returns a spec that names no process. A spec that an earlier version has written may
// name one, whose number may be another process's by now.
func (p *Pins) WithoutNumbers(
	ctx context.Context, pod *store.Pod, c *table.ContainerEntry, spec []byte,
) ([]byte, error) {
	if !numbered.Match(spec) {
		return spec, nil
	}
	if err := p.PinPause(ctx, pod.ID); err != nil {
		return nil, err
	}
	shared, err := p.PinTarget(c)
	if err != nil {
		return nil, err
	}
	return numbered.ReplaceAllFunc(spec, func(old []byte) []byte {
		kind := string(numbered.FindSubmatch(old)[1])
		path := filepath.Join(p.layout.PauseNS(pod.ID), kind)
		if kind == "pid" && shared != "" {
			path = shared
		}
		return fmt.Appendf(nil, `"path":%q`, path)
	}), nil
}

// Remove removes all pins in the folder of a pod.
func Remove(folder string) error {
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
