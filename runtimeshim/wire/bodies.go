package wire

import (
	"encoding/json"

	"github.com/cribox/cribox/runtimeshim"
)

// Version answers the verb version, of shim and logger alike.
type Version struct {
	Format int    `json:"format"`
	Pid    int    `json:"pid"`
	Build  string `json:"build,omitempty"` // of the program; shims, and loggers of old versions, do not say
}

// Task is the request of verbs that need no more than its id.
type Task struct {
	ID string `json:"id"`
}

// Kill is the request of the verb kill.
type Kill struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// Exec is the request of the verb exec; its descriptors are those of the
// streams that Have names, in order.
type Exec struct {
	ID       string          `json:"id"`
	Runtime  string          `json:"runtime"`
	Process  json.RawMessage `json:"process"`
	Have     [3]bool         `json:"have"`
	LockFile string          `json:"lock_file,omitempty"`
	Terminal bool            `json:"terminal,omitempty"`
	Session  bool            `json:"session,omitempty"`
}

// ExecStarted is the first reply of exec, with the terminal's master if any.
type ExecStarted struct {
	Pid int `json:"pid"`
}

// ExecDone is its last.
type ExecDone struct {
	Code int32 `json:"code"`
}

// Watched is one message of the verb watch: first all tasks, then exits.
type Watched struct {
	Snapshot bool               `json:"snapshot,omitempty"`
	Tasks    []runtimeshim.Task `json:"tasks"`
}

// Update is the request of the verb update.
type Update struct {
	ID          string          `json:"id"`
	Resources   json.RawMessage `json:"resources"`
	Previous    json.RawMessage `json:"previous"`
	OOMScoreAdj *int            `json:"oom_score_adj,omitempty"`
	LockFile    string          `json:"lock_file,omitempty"`
}

// Attach is the request of the verb attach; its descriptors are those of
// the streams that Have names, in order: writing ends of pipes.
type Attach struct {
	ID   string  `json:"id"`
	Have [2]bool `json:"have"`
}

// LoggerTask is the body of open, reopen and finish.
type LoggerTask struct {
	ID    string `json:"id"`
	Start int64  `json:"start,omitempty"` // of a task of that id, the one with this in its log.json
}
