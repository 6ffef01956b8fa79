package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// Format is the version of the records that this program writes.
const Format = 1

// Params describes a task to the shim: on the wire, and in the task's record.
type Params struct {
	ID        string `json:"id"`
	Pod       string `json:"pod,omitempty"`
	Runtime   string `json:"runtime"`
	Terminal  bool   `json:"terminal,omitempty"`
	Stdin     bool   `json:"stdin,omitempty"`
	StdinOnce bool   `json:"stdin_once,omitempty"`
	OOMFile   string `json:"oom_file,omitempty"`
	LockFile  string `json:"lock_file,omitempty"`
	Keeper    bool   `json:"keeper,omitempty"`
	OwnerUID  int    `json:"owner_uid,omitempty"` // owner of stdin
	OwnerGID  int    `json:"owner_gid,omitempty"`
	Systemd   bool   `json:"systemd,omitempty"` // systemd creates the cgroup
	// Native: started without the runtime, if package place can do it. A shim that does not know
	// this asks the runtime. Afterwards the runtime has a state of the task, or it does not: that
	// tells how the task is ended.
	Native bool `json:"native,omitempty"`
	// NativeExec: place will be asked to execute commands in it, and so needs its seccomp filter.
	NativeExec bool `json:"native_exec,omitempty"`
}

// Record is the content of task.json: everything that a new shim needs to take the task over,
// including a shim that has replaced its own program under the same pid.
//
//	(folder) --intent--> starting --pid known--> running --file exit--> exited --clear--> released
//	   ^                     |
//	   +---- start failed ---+
type Record struct {
	Format int `json:"format"`
	Params
	// StateStarting or StateRunning; a task whose file exit is there has exited
	State string `json:"state"`
	Pid   int    `json:"pid,omitempty"`
	// StartTicks is the start time of the process; together with Pid it identifies the process.
	StartTicks uint64 `json:"start_ticks,omitempty"`
	// OOMBase is the value of the oom_kill counter before the start.
	OOMBase   uint64    `json:"oom_base,omitempty"`
	StartedAt time.Time `json:"started_at,omitzero"`
	Released  bool      `json:"released,omitempty"` // removed from the runtime and the cgroups
}

// LogRecord is the content of log.json: what the logger needs to know about a task.
type LogRecord struct {
	Format int    `json:"format"`
	Path   string `json:"path"` // absolute path of the CRI log; "" = read and discard
	// Limit is the maximum size of the log in bytes between rotations; 0 means unlimited.
	Limit    int64 `json:"limit,omitempty"`
	Terminal bool  `json:"terminal"`        // there is only stdout, with the raw bytes of a tty
	Start    int64 `json:"start,omitempty"` // distinguishes starts of tasks that have the same id
}

// ExitRecord is the content of the file exit.
type ExitRecord struct {
	Format int       `json:"format"`
	Code   int32     `json:"code"`
	Known  bool      `json:"known"`
	OOM    bool      `json:"oom"`
	At     time.Time `json:"at"`
}

// WriteJSON replaces path by v atomically: a reader sees either the old file or the new one. It
// does not sync, because the state folder does not survive a reboot.
func WriteJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// ReadJSON reads v from path. ErrNotFound when there is no file, ErrDataLoss when it is not JSON.
func ReadJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: %v: %w", path, err, errdefs.ErrDataLoss)
	}
	return nil
}
