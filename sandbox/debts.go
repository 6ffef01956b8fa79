package sandbox

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// Owed is something that the daemon has to do yet, and tries again until it is done.
type Owed = activity.Owed

// Debts returns what is owed now, the oldest first: operations that have failed and are tried again,
// networks of pods that are gone, processes that do not end, records that cannot be read, and what
// was removed but still takes space.
func (m *Manager) Debts() []Owed {
	all := m.pods.activity.Debts()
	for _, id := range m.network.Debts() {
		if r, ok := m.table.States.Get(id); !ok || r.State == store.PodNotReady {
			all = append(all, Owed{Subject: m.subject(id), What: "release its network: a plugin fails, see the log"})
		}
	}
	for _, c := range m.Containers() {
		by := table.StopBy(c.Container)
		if c.State == store.ContainerStopping && time.Since(by) > killLimit {
			who := Subject{Kind: containerKind, ID: c.ID, Name: c.Config.GetMetadata().GetName()}
			all = append(all, Owed{Subject: who, What: "end its processes, which still run after SIGKILL", Since: by})
		}
	}
	all = append(all, m.unread()...)
	switch n, err := m.containers.mounts.Trash.Waiting(); {
	case err != nil:
		all = append(all, Owed{What: "delete what was removed", Err: err.Error()})
	case n > 0:
		all = append(all, Owed{What: fmt.Sprintf("delete %d writable layers of removed containers", n)})
	}
	slices.SortStableFunc(all, func(a, b Owed) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// subject names a pod, which may be gone.
func (m *Manager) subject(id string) Subject {
	s := Subject{Kind: podKind, ID: id}
	for _, told := range m.Stories(func(s Subject) bool { return s.Kind == podKind && s.ID == id }) {
		s.Name = told.Name
	}
	return s
}

// unread returns the records and requests that cannot be read.
func (m *Manager) unread() (all []Owed) {
	for _, id := range m.table.UnreadPods() {
		all = append(all, Owed{Subject: Subject{Kind: podKind, ID: id}, What: "read its record again"})
	}
	pods, containers := m.table.Lacking()
	for _, p := range pods {
		who := Subject{Kind: podKind, ID: p.ID}
		all = append(all, Owed{Subject: who, What: "read its request again", Err: p.Lacks.Error()})
	}
	for _, c := range containers {
		who := Subject{Kind: containerKind, ID: c.ID}
		all = append(all, Owed{Subject: who, What: "read its request again", Err: c.Lacks.Error()})
	}
	return all
}
