// Package statedir defines the state folder that the daemon, the shim and the logger share: the
// file names in it, and the records, which each of them can read whatever version wrote them.
package statedir

import (
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
)

// Root is the path of the state folder of one instance; its methods return the paths in it.
type Root string

func (d Root) At(name string) string { return filepath.Join(string(d), name) }
func (d Root) ShimSock() string      { return d.At("shim.sock") }
func (d Root) ShimLock() string      { return d.At("shim.lock") }
func (d Root) ShimLog() string       { return d.At("shim.log") }
func (d Root) LoggerSock() string    { return d.At("logger.sock") }
func (d Root) LoggerLock() string    { return d.At("logger.lock") }
func (d Root) LoggerLog() string     { return d.At("logger.log") }
func (d Root) RuncRoot() string      { return d.At("runc") }
func (d Root) RuncState(id string) string {
	return filepath.Join(d.RuncRoot(), id, "state.json")
}
func (d Root) Tasks() string      { return d.At("shim") }
func (d Root) ShimHome() string   { return string(d) }       // locked by the shim: see HoldLock
func (d Root) LoggerHome() string { return d.Tasks() }       // locked by the logger
func (d Root) Gone() string       { return d.At("gone") }    // task folders that are being removed
func (d Root) Filters() string    { return d.At("filters") } // by the shim: seccomp filters
func (d Root) Filter(key string) string {
	return filepath.Join(d.Filters(), key+".json")
}
func (d Root) Task(id string) Task { return Task(filepath.Join(d.Tasks(), id)) }

// Task is the path of the folder of one task: STATE/shim/ID.
type Task string

func (d Task) At(name string) string { return filepath.Join(string(d), name) }
func (d Task) ID() string            { return filepath.Base(string(d)) }
func (d Task) Bundle() string        { return d.At("bundle") }
func (d Task) Config() string        { return d.At("bundle/config.json") }
func (d Task) Stdout() string        { return d.At("stdout") }    // FIFO, 0600
func (d Task) Stderr() string        { return d.At("stderr") }    // FIFO, 0600; not for a terminal
func (d Task) Log() string           { return d.At("log.json") }  // LogRecord, by the client
func (d Task) Record() string        { return d.At("task.json") } // Record, by the shim
func (d Task) Pid() string           { return d.At("pid") }       // by the runtime
func (d Task) Exit() string          { return d.At("exit") }      // ExitRecord, by the shim
func (d Task) Oom() string           { return d.At("oom") }       // oomMark, by the shim
func (d Task) RuntimeLog() string    { return d.At("runtime.log") }
func (d Task) Limits() string        { return d.At("limits") } // []limit, during an update
func (d Task) Resources() string     { return d.At("resources.json") }
func (d Task) Keeper() string        { return d.At("keeper.sock") }

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// CheckID returns ErrInvalidArgument for an id that cannot be the name of a task folder.
func CheckID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("task id %.80q is not [a-z0-9-]{1,64}: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}
