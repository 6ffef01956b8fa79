package runtimeshim

import (
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
)

// stateDir is the state folder of one instance; its methods are the names in it.
type stateDir string

func (d stateDir) at(name string) string  { return filepath.Join(string(d), name) }
func (d stateDir) shimSock() string       { return d.at("shim.sock") }
func (d stateDir) shimLock() string       { return d.at("shim.lock") }
func (d stateDir) shimLog() string        { return d.at("shim.log") }
func (d stateDir) loggerSock() string     { return d.at("logger.sock") }
func (d stateDir) loggerLock() string     { return d.at("logger.lock") }
func (d stateDir) loggerLog() string      { return d.at("logger.log") }
func (d stateDir) runcRoot() string       { return d.at("runc") }
func (d stateDir) tasks() string          { return d.at("shim") }
func (d stateDir) shimHome() string       { return string(d) }    // locked by the shim, see lockFree
func (d stateDir) loggerHome() string     { return d.tasks() }    // locked by the logger
func (d stateDir) gone() string           { return d.at("gone") } // task folders on their way out
func (d stateDir) task(id string) taskDir { return taskDir(filepath.Join(d.tasks(), id)) }

// taskDir is the folder of one task: STATE/shim/ID.
type taskDir string

func (d taskDir) at(name string) string { return filepath.Join(string(d), name) }
func (d taskDir) id() string            { return filepath.Base(string(d)) }
func (d taskDir) bundle() string        { return d.at("bundle") }
func (d taskDir) config() string        { return d.at("bundle/config.json") }
func (d taskDir) stdout() string        { return d.at("stdout") }    // FIFO, 0600
func (d taskDir) stderr() string        { return d.at("stderr") }    // FIFO, 0600; not used by a terminal
func (d taskDir) log() string           { return d.at("log.json") }  // logRecord, written by the client
func (d taskDir) record() string        { return d.at("task.json") } // taskRecord, written by the shim
func (d taskDir) pid() string           { return d.at("pid") }       // written by the runtime
func (d taskDir) exit() string          { return d.at("exit") }      // exitRecord, written by the shim
func (d taskDir) oom() string           { return d.at("oom") }       // oomMark, written by the shim
func (d taskDir) runtimeLog() string    { return d.at("runtime.log") }
func (d taskDir) limits() string        { return d.at("limits") } // []limit, while an update is under way
func (d taskDir) resources() string     { return d.at("resources.json") }
func (d taskDir) keeper() string        { return d.at("keeper.sock") }

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// checkID refuses what could not be the name of a task folder. ErrInvalidArgument.
func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("task id %.80q is not [a-z0-9-]{1,64}: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}
