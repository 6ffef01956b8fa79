package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

const Format = 1

// Params is what the shim is told of a task, on the wire and in its record.
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
	OwnerUID  int    `json:"owner_uid,omitempty"` // of stdin
	OwnerGID  int    `json:"owner_gid,omitempty"`
	Systemd   bool   `json:"systemd,omitempty"` // makes the cgroup
}

// Record is task.json: everything a new shim, or a new program under the
// old pid, needs to take the task over.
//
//	(folder only) --intent--> starting --pid known--> running --(file exit)--> exited --runtime's part gone--> released
//	     ^                       |
//	     +------ start failed ---+
type Record struct {
	Format int `json:"format"`
	Params
	State      string    `json:"state"` // StateStarting or StateRunning; the file exit says exited
	Pid        int       `json:"pid,omitempty"`
	StartTicks uint64    `json:"start_ticks,omitempty"` // with Pid the identity of the process
	OOMBase    uint64    `json:"oom_base,omitempty"`    // oom_kill before the start
	StartedAt  time.Time `json:"started_at,omitzero"`
	Released   bool      `json:"released,omitempty"` // the runtime and the cgroup know it no more
}

// LogRecord is log.json: what the logger needs to know of a task.
type LogRecord struct {
	Format   int    `json:"format"`
	Path     string `json:"path"`            // absolute path of the CRI log; "" = read and drop
	Limit    int64  `json:"limit,omitempty"` // bytes that the log takes until it is rotated; 0 = any number
	Terminal bool   `json:"terminal"`        // only the FIFO stdout is used, raw bytes of a tty
	Start    int64  `json:"start,omitempty"` // tells one start of a task from the next of the same id
}

// ExitRecord is the file exit.
type ExitRecord struct {
	Format int       `json:"format"`
	Code   int32     `json:"code"`
	Known  bool      `json:"known"`
	OOM    bool      `json:"oom"`
	At     time.Time `json:"at"`
}

// WriteJSON replaces path by v in one step; a reader sees the old or the new
// file whole. Not synced: the state folder does not outlive the machine.
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

// ReadJSON fills v from path. Absent = ErrNotFound, not JSON = ErrDataLoss.
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
