package crictltests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// copyProgram makes the daemon start from another path from now on, as after an upgrade that puts each version into a folder of its own.
func (d *daemon) copyProgram(name string) {
	d.Helper()
	program, err := os.ReadFile(binary(d.binary))
	d.must(err)
	path := filepath.Join(d.dir, name)
	d.must(os.MkdirAll(filepath.Dir(path), 0o755))
	d.must(os.WriteFile(path, program, 0o755))
	d.binary, err = filepath.Rel(binFolder, path)
	d.must(err)
}

// hangingRuntime is runc whose exec never ends. It writes the file begun when it gets there.
func hangingRuntime(t *testing.T) (path, begun string) {
	t.Helper()
	dir := t.TempDir()
	path, begun = filepath.Join(dir, "runc-that-hangs"), filepath.Join(dir, "begun")
	script := fmt.Sprintf("#!/bin/sh\nfor word; do\n\tif [ \"$word\" = exec ]; then : >%s; exec sleep 1000; fi\ndone\nexec %s \"$@\"\n", begun, binary("runc"))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, begun
}

// TestUpgradeKeepsTheShim: the daemon runs from another path than the shim, and an exec hangs. Stopping the pod ends the runtime that hangs,
// and never the shim, which has the pod's lock open too.
func TestUpgradeKeepsTheShim(t *testing.T) {
	t.Parallel()
	runtime, begun := hangingRuntime(t)
	d := newDaemon(t, withConfig(fmt.Sprintf("[runtimes.hangs]\npath = %q\n", runtime)))
	shim, logger := d.waitRole("shim", 0), d.waitRole("logger", 0)
	bystander := d.runPod().run(idle())
	d.kill()
	d.copyProgram("v2/cribox")
	d.start()
	c := d.runPodBy("hangs").run(idle())
	hangs := make(chan error, 1)
	go func() {
		_, err := c.tryExec(0, "true")
		hangs <- err
	}()
	eventually(t, "the exec to hang", func() error { _, err := os.Stat(begun); return err })
	c.pod.stop()
	if err := <-hangs; err == nil {
		t.Error("an exec whose runtime never ended has succeeded")
	}
	if now := d.role("shim"); now != shim {
		t.Errorf("the shim was %d and is %d: stopping a pod has ended it", shim, now)
	}
	if now := d.role("logger"); now != logger {
		t.Errorf("the logger was %d and is %d: stopping a pod has ended it", logger, now)
	}
	bystander.exec("true")
}
