package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/store"
)

// A disk that fails must not end what runs. Only a record or a request that is not there was interrupted by a crash. One that cannot be read
// leaves its pod or container alone: the processes go on, it is listed as far as it is known, the log says so, and it is read again until
// that succeeds. Meanwhile nothing is collected: nobody knows what belongs to it.

// load puts every record and its request into memory.
func (t *table) load(ctx context.Context) error {
	var torn []store.Torn
	var err error
	if t.states.store, torn, err = store.Open(t.layout.RootPath("pods"), t.layout.StatePath("records")); err != nil {
		return err
	}
	t.states.store.Observe(t.changed)
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
		}
	}
	for _, r := range t.states.list() {
		t.remember(ctx, r)
	}
	return nil
}

// remember fills memory from one record.
func (t *table) remember(ctx context.Context, r *store.Pod) {
	p := newPod(r.ID, &runtimeapi.PodSandboxConfig{})
	if p.lacks = t.readRequest(r.ID, "", p.config); p.lacks != nil {
		p.config.Metadata = &runtimeapi.PodSandboxMetadata{Name: r.ID} // clients look into it
	}
	all := []*container{}
	for cid, rec := range r.Containers {
		c := newContainer(r.ID, rec, &runtimeapi.ContainerConfig{})
		if c.lacks = t.readRequest(r.ID, cid, c.config); c.lacks != nil && rec.State != store.ContainerCreating {
			warnUnread(ctx, r.ID, cid, c.lacks)
			c.config.Metadata = &runtimeapi.ContainerMetadata{Name: cid}
			c.config.Image = &runtimeapi.ImageSpec{Image: rec.ImageRef}
		}
		if rec.State == store.ContainerExited {
			c.markExited()
		}
		all = append(all, c)
	}
	if p.lacks != nil && r.State != store.PodCreating {
		warnUnread(ctx, r.ID, "", p.lacks)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.latest = r.Created
	t.pods[r.ID] = p
	t.setKey(p.lacks, podKey(p.config), p.id)
	for _, c := range all {
		p.latest = max(p.latest, r.Containers[c.id].Created)
		t.containers[c.id] = c
		t.setKey(c.lacks, containerKey(r.ID, c.config), c.id)
	}
}

func warnUnread(ctx context.Context, pod, container string, err error) {
	entry := log.G(ctx).WithField("pod", pod).WithError(err)
	if container != "" {
		entry = entry.WithField("container", container)
	}
	entry.Error("a request cannot be read; what runs goes on, and it will be read again")
}

// readRequest reads what a pod, or its container cid, was asked for.
func (t *table) readRequest(id, cid string, config proto.Message) error {
	asked, err := t.states.store.Asked(id, cid)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(asked, config); err != nil {
		proto.Reset(config)
		return fmt.Errorf("request of pod %s %s: %w: %w", id, cid, err, errdefs.ErrDataLoss)
	}
	return nil
}
