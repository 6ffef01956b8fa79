package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim/statedir"
)

// ProcID is a pid and the start time of its process; Ticks is 0 if the process has ended.
type ProcID struct {
	Pid   int
	Ticks uint64
}

// InitOf returns the process in runc's state file; an empty ProcID for other runtimes.
func InitOf(name string) (ProcID, error) {
	var st struct {
		Pid   int    `json:"init_process_pid"`
		Start uint64 `json:"init_process_start"`
	}
	err := statedir.ReadJSON(name, &st)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		return ProcID{}, nil
	}
	return ProcID{st.Pid, st.Start}, err
}

// SetOOMScore changes the oom_score_adj in runc's state file and returns the old value. runc gives
// that value to everything that it executes in the container, whatever the exec's own process says,
// and its update does not change it. It does nothing for other runtimes.
func SetOOMScore(name string, adj json.RawMessage) (was json.RawMessage, err error) {
	const key = "oom_score_adj"
	var state, config map[string]json.RawMessage
	if err := statedir.ReadJSON(name, &state); err != nil || state["config"] == nil {
		return nil, nil
	}
	if err := json.Unmarshal(state["config"], &config); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	was = config[key]
	if config[key] = adj; adj == nil {
		delete(config, key)
	}
	if state["config"], err = json.Marshal(config); err != nil {
		return nil, err
	}
	return was, statedir.WriteJSON(name, state)
}

// ReadPid reads a runtime's pid file. ErrDataLoss when it does not contain a pid.
func ReadPid(name string) (int, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("pid file %s contains %.40q: %w", name, raw, errdefs.ErrDataLoss)
	}
	return pid, nil
}
