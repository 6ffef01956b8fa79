package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/store"
)

// A disk that fails must not end what runs. Only a record or a request that is not there was interrupted by a crash. One that cannot be read
// leaves its pod or container alone: the processes go on, it is listed as far as it is known, the log says so, and it is read again until
// that succeeds. Meanwhile nothing is collected: nobody knows what belongs to it.

// load puts every record and its request into memory.
func (m *Manager) load(ctx context.Context) error {
	var torn []store.Torn
	var err error
	if m.store, torn, err = store.Open(m.rootPath("pods"), m.statePath("records")); err != nil {
		return err
	}
	m.store.Observe(m.changed)
	for _, t := range torn {
		entry := log.G(ctx).WithField("pod", t.ID).WithError(t.Err)
		switch {
		case t.Copied:
			entry.Error("the record of a pod cannot be read; its copy in the state folder is used")
		case t.Unread:
			m.unread[t.ID] = t.Err
			entry.Error("the record of a pod cannot be read; the pod is left alone, and its record will be read again")
		default:
			entry.Error("the record of a pod is damaged; it was set aside and the pod is lost")
		}
	}
	for _, r := range m.store.List() {
		m.remember(ctx, r)
	}
	return nil
}

// remember fills memory from one record.
func (m *Manager) remember(ctx context.Context, r *store.Pod) {
	p := newPod(r.ID, &runtimeapi.PodSandboxConfig{})
	if p.lacks = m.readRequest(r.ID, "", p.config); p.lacks != nil {
		p.config.Metadata = &runtimeapi.PodSandboxMetadata{Name: r.ID} // clients look into it
	}
	all := []*container{}
	for cid, rec := range r.Containers {
		c := newContainer(r.ID, rec, &runtimeapi.ContainerConfig{})
		if c.lacks = m.readRequest(r.ID, cid, c.config); c.lacks != nil && rec.State != store.ContainerCreating {
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
	m.mu.Lock()
	defer m.mu.Unlock()
	p.latest = r.Created
	m.pods[r.ID] = p
	m.name(p.lacks, podKey(p.config), p.id)
	for _, c := range all {
		p.latest = max(p.latest, r.Containers[c.id].Created)
		m.containers[c.id] = c
		m.name(c.lacks, containerKey(r.ID, c.config), c.id)
	}
}

// name lets a pod or container be found by what it was called in its request, unless that is not known. The caller has m.mu.
func (m *Manager) name(lacks error, key, id string) {
	if _, taken := m.names[key]; lacks == nil && !taken {
		m.names[key] = id
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
func (m *Manager) readRequest(id, cid string, config proto.Message) error {
	asked, err := m.store.Asked(id, cid)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(asked, config); err != nil {
		proto.Reset(config)
		return fmt.Errorf("request of pod %s %s: %w: %w", id, cid, err, errdefs.ErrDataLoss)
	}
	return nil
}

// known returns ErrUnavailable for a request that needs what another one said, which cannot be read now.
func known(lacks error) error {
	if lacks != nil {
		return fmt.Errorf("%v: it will be read again: %w", lacks, errdefs.ErrUnavailable)
	}
	return nil
}

// knownPod is known for a pod by its id.
func (m *Manager) knownPod(id string) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p, ok := m.pods[id]; ok {
		return known(p.lacks)
	}
	return nil
}

// readPause is how long a record or request that cannot be read is left alone, doubled up to readAtMost.
const readPause, readAtMost = time.Second, time.Minute

// readAgain reads what could not be read, until nothing is left of it. Then it takes away what belongs to nobody.
func (m *Manager) readAgain(ctx context.Context) {
	for pause := readPause; ; pause = min(2*pause, readAtMost) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		done := false
		guard.Run(ctx, "reading records again", func() {
			records := m.readRecords(ctx)
			done = m.readRequests(ctx) && records
		})
		if done {
			break
		}
	}
	log.G(ctx).Info("all records and requests can be read again")
	tasks, err := m.tasks(ctx)
	if err != nil {
		m.log(ctx, err) // the next start collects
		return
	}
	m.collectAll(ctx, tasks)
}

// readRecords says whether every record is in memory.
func (m *Manager) readRecords(ctx context.Context) bool {
	done := true
	for _, id := range m.unreadPods() {
		r, err := m.store.Again(id)
		var tasks map[string]runtimeshim.Task
		if err == nil {
			tasks, err = m.tasks(ctx)
		}
		if err != nil {
			done = false
			continue
		}
		if r != nil {
			m.remember(ctx, r)
			m.recoverPod(ctx, r, tasks)
		}
		m.mu.Lock()
		delete(m.unread, id)
		m.mu.Unlock()
	}
	return done
}

func (m *Manager) unreadPods() (ids []string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for id := range m.unread {
		ids = append(ids, id)
	}
	return ids
}

// lacking returns the pods and containers whose requests are not in memory.
func (m *Manager) lacking() (pods []*pod, containers []*container) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, p := range m.pods {
		if p.lacks != nil {
			pods = append(pods, p)
		}
	}
	for _, c := range m.containers {
		if c.lacks != nil {
			containers = append(containers, c)
		}
	}
	return pods, containers
}

// readRequests says whether every request is in memory. A pod or container that is known by its request now takes the place of the one
// without, whose end it shares.
func (m *Manager) readRequests(ctx context.Context) bool {
	pods, containers := m.lacking()
	done := true
	for _, p := range pods {
		next := newPod(p.id, &runtimeapi.PodSandboxConfig{})
		if m.readRequest(p.id, "", next.config) != nil {
			done = false
			continue
		}
		next.paused, next.once = p.paused, p.once
		m.mu.Lock()
		if m.pods[p.id] == p {
			next.latest = p.latest
			m.pods[p.id] = next
			m.name(nil, podKey(next.config), p.id)
		}
		m.mu.Unlock()
	}
	for _, c := range containers {
		r, ok := m.record(c)
		next := newContainer(c.podID, r, &runtimeapi.ContainerConfig{})
		if !ok || m.readRequest(c.podID, c.id, next.config) != nil {
			done = done && !ok
			continue
		}
		next.exited, next.once = c.exited, c.once
		m.mu.Lock()
		if m.containers[c.id] == c {
			m.containers[c.id] = next
			m.name(nil, containerKey(c.podID, next.config), c.id)
		}
		m.mu.Unlock()
		if r.Updating != nil {
			m.settleLater(next)
		}
	}
	return done
}

// recordUnread returns ErrUnavailable when id is, or begins, the id of a pod whose record cannot be read now: it is not unknown.
func (m *Manager) recordUnread(id string) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if _, err := expand("pod", id, m.unread); err == nil || errors.Is(err, errdefs.ErrInvalidArgument) && id != "" {
		return fmt.Errorf("the record of pod %s cannot be read now; it will be read again: %w", id, errdefs.ErrUnavailable)
	}
	return nil
}

// isThere says whether there is something at path. An error means that it cannot be told now.
func isThere(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
