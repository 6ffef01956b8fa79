package sandbox

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/store"
)

// Pod is what is known of a pod at one moment. Whoever gets one may keep it, and changes nothing in it.
type Pod struct {
	store.Pod
	Config *runtimeapi.PodSandboxConfig // as asked
	Told   *Told                        // of Config
}

// Ready says whether containers can be made in the pod (CRI PodSandboxState).
func (p Pod) Ready() bool { return ready(&p.Pod) }

// Overhead and Resources return what the pod costs beside its containers, and what those may use together, as they were told last
// (CRI LinuxPodSandboxConfig, UpdatePodSandboxResources).
func (p Pod) Overhead() *runtimeapi.LinuxContainerResources {
	return rememberedOr(p.Pod.Overhead, p.Config.GetLinux().GetOverhead())
}

func (p Pod) Resources() *runtimeapi.LinuxContainerResources {
	return rememberedOr(p.Limits, p.Config.GetLinux().GetResources())
}

// ready holds of a pod that came up, whose pause process lives, and that nobody has asked to stop.
func ready(r *store.Pod) bool { return r.State == store.PodReady && r.PausePID != 0 }

// Pod returns the pod with this id or unique beginning of one. ErrNotFound, ErrInvalidArgument.
func (m *Manager) Pod(id string) (Pod, error) {
	p, err := m.findPod(id)
	if err != nil {
		return Pod{}, err
	}
	r, ok := m.store.Get(p.id)
	if !ok || r.State == store.PodCreating {
		return Pod{}, fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	return Pod{Pod: *r, Config: p.config, Told: &p.told}, nil
}

// Pods returns every pod that is more than an attempt, the newest first.
func (m *Manager) Pods() []Pod {
	records := m.store.List()
	slices.SortFunc(records, newestPodFirst)
	all := make([]Pod, 0, len(records))
	m.mu.RLock()
	for _, r := range records {
		if p, ok := m.pods[r.ID]; ok && r.State != store.PodCreating {
			all = append(all, Pod{Pod: *r, Config: p.config, Told: &p.told})
		}
	}
	m.mu.RUnlock()
	return all
}

func newestPodFirst(a, b *store.Pod) int {
	return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID))
}

func (m *Manager) findPod(id string) (*pod, error) {
	if err := m.recordUnread(id); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	full, err := expand("pod", id, m.pods)
	if err != nil {
		return nil, err
	}
	return m.pods[full], nil
}

// forgetPod takes the pod out of memory; its name is free from here on.
func (m *Manager) forgetPod(p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, p.id)
	if key := podKey(p.config); m.names[key] == p.id {
		delete(m.names, key)
	}
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) bool {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// podSpecFile is the OCI spec of the pause process, among the pod's files.
const podSpecFile = "config.json"

// PodSpec returns the OCI spec of a pod, which names its namespaces, as long as the pod is not stopped.
func (m *Manager) PodSpec(p Pod) ([]byte, error) { return os.ReadFile(m.podFile(p.ID, podSpecFile)) }
