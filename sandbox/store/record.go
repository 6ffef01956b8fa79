package store

import "maps"

// Format is the number that every record carries. A reader of Format N+1 reads N.
const Format = 1

// Pod states. What is in between is written before the act, so that after a crash the record says
// what was being done.
//
//	creating -> ready -> stopping -> notready -> removing -> (gone)
//	    \_________\__________\____________________/
//
// A pod in stopping or notready was ready once; an attempt that failed goes from creating to
// removing.
const (
	PodCreating = "creating"
	PodReady    = "ready"
	PodStopping = "stopping"
	PodNotReady = "notready"
	PodRemoving = "removing"
)

// Container states.
//
//	creating -> created -> starting -> running -> stopping -> exited -> removing -> (gone)
//	                \_________\___________________________________________/
//
// A start that came to nothing goes from starting back to created. Whatever has not ended can go to
// exited, and everything to removing: package table has every transition in states.go.
const (
	ContainerCreating = "creating"
	ContainerCreated  = "created"
	ContainerStarting = "starting"
	ContainerRunning  = "running"
	ContainerStopping = "stopping"
	ContainerExited   = "exited"
	ContainerRemoving = "removing"
)

// Pod is the record of one pod: what cribox decided and what it observed. Times are nanoseconds
// since 1970.
type Pod struct {
	Format     int      `json:"format"`
	ID         string   `json:"id"`
	State      string   `json:"state"`
	Handler    string   `json:"handler"` // as asked; empty is the default
	Created    int64    `json:"created"`
	NetNS      string   `json:"netns,omitempty"` // empty: the host's
	IPs        []string `json:"ips,omitempty"`
	PausePID   int      `json:"pause_pid,omitempty"`
	Cgroup     string   `json:"cgroup,omitempty"`      // of the pause container
	PauseImage string   `json:"pause_image,omitempty"` // id of the image that the pause container runs from
	// ProcessLabel and MountLabel are the pod's SELinux labels; empty: none. Their level is the
	// pod's as long as there is a record.
	ProcessLabel string `json:"process_label,omitempty"`
	MountLabel   string `json:"mount_label,omitempty"`

	Overhead   []byte               `json:"overhead"` // as an update left it, a CRI message; nil: as the request has it
	Limits     []byte               `json:"limits"`   // the same of the sum of the containers' resources
	Containers map[string]Container `json:"containers,omitempty"`
}

// Container is the record of one container of a pod.
type Container struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Created  int64  `json:"created"`
	Started  int64  `json:"started,omitempty"`
	Finished int64  `json:"finished,omitempty"`
	PID      int    `json:"pid,omitempty"`
	ExitCode int32  `json:"exit_code,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
	ImageID  string `json:"image_id"`
	ImageRef string `json:"image_ref"` // repo digest when the image has one
	LogPath  string `json:"log_path,omitempty"`
	Signal   int    `json:"stop_signal,omitempty"` // number
	StopBy   int64  `json:"stop_by,omitempty"`     // when a running stop turns into SIGKILL
	// StopByBoot is StopBy on a clock that nobody sets, in nanoseconds since the machine's boot; 0:
	// an earlier version wrote the record.
	StopByBoot int64    `json:"stop_by_boot,omitempty"`
	Cgroup     string   `json:"cgroup,omitempty"`
	UID        uint32   `json:"uid,omitempty"`
	GID        uint32   `json:"gid,omitempty"`
	Groups     []uint32 `json:"groups,omitempty"`
	// resources as updates left them, a CRI message; nil: as the request has them
	Limits   []byte `json:"limits,omitempty"`
	Updating []byte `json:"updating,omitempty"` // an update under way, a CRI message: how much of it is done is not known

	// MountImages are the ids of the images that the request's mounts name, by the index of the
	// mount, "" for a host path; nil: none does.
	MountImages []string `json:"mount_images,omitempty"`
}

// clone returns a copy that shares nothing a caller could change.
func (p Pod) clone() Pod {
	p.Containers = maps.Clone(p.Containers)
	if p.Containers == nil {
		p.Containers = map[string]Container{}
	}
	return p
}
