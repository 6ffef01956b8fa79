package table

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/sandbox/store"
)

// A disk that fails must not end what runs. Only a record or a request that is not there was
// interrupted by a crash. One that cannot be read leaves its pod or container alone: the processes
// go on, it is listed as far as it is known, the log says so, and it is read again until that
// succeeds. Meanwhile nothing is collected: nobody knows what belongs to it.

// Load puts every record and its request into memory.
func (t *Table) Load(ctx context.Context) error {
	var torn []store.Torn
	var err error
	if t.States.store, torn, err = store.Open(t.Layout.RootPath("pods"), t.Layout.StatePath("records")); err != nil {
		return err
	}
	t.States.store.Observe(t.changed)
	for _, one := range torn {
		entry := log.G(ctx).WithField("pod", one.ID).WithError(one.Err)
		switch {
		case one.Copied:
			entry.Error("the record of a pod cannot be read; its copy in the state folder is used")
		case one.Unread:
			t.unread[one.ID] = one.Err
			entry.Error("the record of a pod cannot be read; the pod is left alone, and its record will be read again")
		default:
			entry.Error("the record of a pod is damaged; it was set aside and the pod is lost")
			telemetry.Add(ctx, telemetry.SetAside, "pod", 1)
		}
	}
	for _, r := range t.States.List() {
		t.Remember(ctx, r)
	}
	return nil
}

// Remember fills memory from one record.
func (t *Table) Remember(ctx context.Context, r *store.Pod) {
	p := NewPodEntry(r.ID, &runtimeapi.PodSandboxConfig{})
	if p.Lacks = t.ReadRequest(r.ID, "", p.Config); p.Lacks != nil {
		p.Config.Metadata = &runtimeapi.PodSandboxMetadata{Name: r.ID} // clients look into it
	}
	all := []*ContainerEntry{}
	for cid, rec := range r.Containers {
		c := NewContainerEntry(r.ID, rec, &runtimeapi.ContainerConfig{})
		if c.Lacks = t.ReadRequest(r.ID, cid, c.Config); c.Lacks != nil && rec.State != store.ContainerCreating {
			warnUnread(ctx, r.ID, cid, c.Lacks)
			c.Config.Metadata = &runtimeapi.ContainerMetadata{Name: cid}
			c.Config.Image = &runtimeapi.ImageSpec{Image: rec.ImageRef}
		}
		if rec.State == store.ContainerExited {
			c.MarkExited()
		}
		all = append(all, c)
	}
	if p.Lacks != nil && r.State != store.PodCreating {
		warnUnread(ctx, r.ID, "", p.Lacks)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.Add(1)
	p.Latest = r.Created
	t.pods[r.ID] = p
	t.setKey(p.Lacks, PodKey(p.Config), p.ID)
	for _, c := range all {
		p.Latest = max(p.Latest, r.Containers[c.ID].Created)
		t.containers[c.ID] = c
		t.setKey(c.Lacks, ContainerKey(r.ID, c.Config), c.ID)
	}
}

func warnUnread(ctx context.Context, pod, container string, err error) {
	entry := log.G(ctx).WithField("pod", pod).WithError(err)
	if container != "" {
		entry = entry.WithField("container", container)
	}
	entry.Error("a request cannot be read; what runs goes on, and it will be read again")
}

// ReadRequest reads what a pod, or its container cid, was asked for.
func (t *Table) ReadRequest(id, cid string, config proto.Message) error {
	asked, err := t.States.store.Asked(id, cid)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(asked, config); err != nil {
		proto.Reset(config)
		return fmt.Errorf("request of pod %s %s: %w: %w", id, cid, err, errdefs.ErrDataLoss)
	}
	return nil
}
