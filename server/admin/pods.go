package admin

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox"
)

// Story is what is known of a pod, a container or a pull: the steps that it took, and those that it
// is in. What its record says is in Record.
type Story struct {
	Kind    string   `json:"kind"` // "pod", "container" or "image"
	ID      string   `json:"id"`
	Name    string   `json:"name,omitempty"` // "namespace/pod", "namespace/pod/container"
	State   string   `json:"state"`
	Record  []Fact   `json:"record,omitempty"`
	Steps   []Moment `json:"steps,omitempty"`   // the last ones, the oldest first
	Dropped int      `json:"dropped,omitempty"` // earlier steps, which are forgotten
}

// Fact is something that a record says.
type Fact struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// Moment is a step.
type Moment struct {
	Step    string        `json:"step"`
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"took"` // so far, of one that runs; nanoseconds
	Running bool          `json:"running,omitempty"`
	Error   string        `json:"error,omitempty"`
}

func (s *Server) why(pods *sandbox.Manager, w http.ResponseWriter, req *http.Request) error {
	name := req.PathValue("name")
	all := storiesOf(pods, name)
	if len(all) == 0 {
		return fmt.Errorf("nothing is known of %q: no pod, container or pull has this ID or name, or had it of late: %w",
			name, errdefs.ErrNotFound)
	}
	return send(w, all)
}

// leastPrefix is how many characters the beginning of an ID has at least.
const leastPrefix = 4

// matches reports whether the name means something with this ID and full name: an ID or its
// beginning, or a name of a pod or container, of which the namespace can be left out.
func matches(name, id, full string) bool {
	name = strings.TrimPrefix(name, "cribox://")
	if len(name) >= leastPrefix && strings.HasPrefix(id, name) {
		return true
	}
	parts := strings.Split(full, "/")
	for from := range parts {
		for to := max(from, 1) + 1; to <= len(parts); to++ { // not the namespace alone
			if strings.Join(parts[from:to], "/") == name {
				return true
			}
		}
	}
	return false
}

// stories collects what is told about the same ID.
type stories struct {
	all  []*Story
	byID map[string]*Story
}

func (s *stories) add(one *Story) {
	if s.byID[one.ID] == nil {
		s.byID[one.ID] = one
		s.all = append(s.all, one)
	}
}

// storiesOf returns the stories of everything that the name means, whether it exists or was removed
// of late. With a pod come its containers.
func storiesOf(pods *sandbox.Manager, name string) []Story {
	found, ofPods := stories{byID: map[string]*Story{}}, map[string]bool{}
	wanted := func(kind, id, full string) bool {
		if matches(name, id, full) {
			if kind == "pod" {
				ofPods[full+"/"] = true
			}
			return true
		}
		return kind == "container" && ofPods[full[:strings.LastIndex(full, "/")+1]]
	}
	for _, kind := range []string{"pod", "container", "image"} {
		for _, s := range pods.Stories(func(s sandbox.Subject) bool { return s.Kind == kind && wanted(kind, s.ID, s.Name) }) {
			found.add(storyOf(s))
		}
	}
	for _, p := range pods.Pods() {
		full := podName(p)
		if wanted("pod", p.ID, full) {
			found.add(&Story{Kind: "pod", ID: p.ID, Name: full})
			found.byID[p.ID].State, found.byID[p.ID].Record = p.State, factsOfPod(p)
		}
		for _, c := range pods.ContainersOf(p) {
			full := full + "/" + c.Config.GetMetadata().GetName()
			if wanted("container", c.ID, full) {
				found.add(&Story{Kind: "container", ID: c.ID, Name: full})
				found.byID[c.ID].State, found.byID[c.ID].Record = c.State, factsOf(c)
			}
		}
	}
	told := make([]Story, 0, len(found.all))
	for _, one := range found.all {
		told = append(told, *one)
	}
	return told
}

func podName(p sandbox.Pod) string {
	return p.Config.GetMetadata().GetNamespace() + "/" + p.Config.GetMetadata().GetName()
}

func fact(all []Fact, at int64, format string, args ...any) []Fact {
	if at == 0 {
		return all
	}
	return append(all, Fact{At: time.Unix(0, at), What: fmt.Sprintf(format, args...)})
}

func factsOfPod(p sandbox.Pod) []Fact {
	where := "in the network of the host"
	if p.NetNS != "" {
		where = "with addresses " + cmp.Or(strings.Join(p.IPs, ", "), "not known yet")
	}
	return fact(nil, p.Created, "created, %s", where)
}

func factsOf(c sandbox.Container) []Fact {
	all := fact(nil, c.Created, "created of image %s", cmp.Or(c.ImageRef, c.ImageID))
	all = fact(all, c.Started, "started")
	if c.Reason == "StartError" {
		return fact(all, c.Finished, "failed to start: %s", c.Message)
	}
	text := fmt.Sprintf("ended with exit code %d, %s", c.ExitCode, c.Reason)
	if c.Message != "" {
		text += ": " + c.Message
	}
	return fact(all, c.Finished, "%s", text)
}

func storyOf(s sandbox.Story) *Story {
	one := &Story{Kind: s.Kind, ID: s.ID, Name: s.Name, State: "removed", Dropped: s.Dropped}
	if !s.Gone {
		one.State = "being made" // what exists gets the state of its record
	}
	if s.Kind == "image" {
		one.State = "pull has ended"
		if len(s.Running) > 0 {
			one.State = "pulling"
		}
	}
	for _, step := range s.Ended {
		one.Steps = append(one.Steps, Moment{Step: step.Name, Began: step.Began, Took: step.Took, Error: step.Err})
	}
	for _, step := range s.Running {
		one.Steps = append(one.Steps, Moment{Step: step.Name, Began: step.Began, Took: step.Took, Running: true})
	}
	slices.SortStableFunc(one.Steps, func(a, b Moment) int { return a.Began.Compare(b.Began) })
	return one
}
