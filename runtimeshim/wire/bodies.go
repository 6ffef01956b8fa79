package wire

import (
	"encoding/json"

	"github.com/cribox/cribox/runtimeshim"
)

// Version is the reply to the verb version, for shim and logger.
type Version struct {
	Format int    `json:"format"`
	Pid    int    `json:"pid"`
	Build  string `json:"build,omitempty"` // of the program; the shim and old loggers leave it out
	// Goroutines is how many the process has. Earlier versions leave it out.
	Goroutines int `json:"goroutines,omitempty"`
}

// Task is the request of verbs that need only the id of a task.
type Task struct {
	ID string `json:"id"`
}

// Kill is the request of the verb kill.
type Kill struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// Exec is the request of the verb exec. Its descriptors are those of the standard streams that are
// true in Have, in that order.
type Exec struct {
	ID       string          `json:"id"`
	Runtime  string          `json:"runtime"`
	Process  json.RawMessage `json:"process"`
	Have     [3]bool         `json:"have"`
	LockFile string          `json:"lock_file,omitempty"`
	Terminal bool            `json:"terminal,omitempty"`
	Session  bool            `json:"session,omitempty"`
	Native   bool            `json:"native,omitempty"`
}

// ExecStarted is the first reply of exec. It carries the terminal's master, if there is one.
type ExecStarted struct {
	Pid int `json:"pid"`
}

// ExecDone is the last reply of exec.
type ExecDone struct {
	Code int32 `json:"code"`
}

// Watched is one message of the verb watch: first a snapshot of all tasks, then each exit.
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

// Attach is the request of the verb attach. Its descriptors are the write ends of pipes for the
// streams that are true in Have, in that order.
type Attach struct {
	ID   string  `json:"id"`
	Have [2]bool `json:"have"`
}

// LoggerTask is the body of the verbs open, reopen and finish.
type LoggerTask struct {
	ID    string `json:"id"`
	Start int64  `json:"start,omitempty"` // if set, only the task whose log.json has the same value
}
