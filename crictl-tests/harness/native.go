package harness

import (
	"os"
	"path/filepath"
	"strings"
)

// ByRuntime counts the commands that the shim has left to the runtime.
func (d *Daemon) ByRuntime() int {
	d.Helper()
	raw, err := os.ReadFile(filepath.Join(d.State, "shim.log"))
	d.Must(err)
	return strings.Count(string(raw), "executing a command with the runtime")
}

// UntilNative returns the container when its commands are executed without the runtime: when the filter of its seccomp profile is known,
// which is read when the first container with the profile has been started.
func (c *Container) UntilNative() *Container {
	c.Helper()
	Eventually(c, "a command that is executed without the runtime", func() error {
		before := c.ByRuntime()
		c.Exec("true")
		return Unless(c.ByRuntime() == before, "the runtime has executed it")
	})
	return c
}
