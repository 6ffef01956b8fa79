package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// archived is an image of the registry as docker save writes it, with these names.
func archived(d *harness.Daemon, image string, names ...string) []byte {
	d.Helper()
	i, err := d.Registry().Image(image)
	d.Must(err)
	b, err := i.Archive(names...)
	d.Must(err)
	return b
}

// TestImageCommand loads an archive without a registry, runs a container of it, and removes it.
func TestImageCommand(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	archive := archived(d, "app:1", "nowhere.test/app:1")
	out, errs, err := d.Said(bytes.NewReader(archive), "image", "load")
	if err != nil || !strings.HasPrefix(out, "loaded nowhere.test/app:1 (") || errs != "" {
		t.Fatalf("load: %q, %q, %v", out, errs, err)
	}
	id := d.IDOf("app:1")
	if i := d.ImageStatus("nowhere.test/app:1"); i == nil || i.Id != id {
		t.Errorf("the CRI has %v", i)
	}
	c := d.RunPod().Run(harness.Shell("id -un"), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = id }))
	c.WaitExit()
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "app\n" {
		t.Errorf("a container of it prints %q", got)
	}
	if out, _, err := d.Said(nil, "image", "ls"); err != nil || !strings.Contains(out, "nowhere.test/app:1 ") {
		t.Errorf("ls: %q, %v", out, err)
	}
	var list []listed
	out, _, err = d.Said(nil, "image", "ls", "--json")
	d.Must(err)
	d.Must(json.Unmarshal([]byte(out), &list))
	if i := slices.IndexFunc(list, func(i listed) bool { return i.ID == id }); i < 0 || !slices.Contains(list[i].Tags, "nowhere.test/app:1") {
		t.Errorf("ls --json: %s", out)
	}
	if out, _, err := d.Said(nil, "image", "inspect", id); err != nil || !strings.Contains(out, `"User": "app"`) {
		t.Errorf("inspect: %q, %v", out, err)
	}
	if _, errs, err := d.Said(nil, "image", "rm", "nowhere.test/app:1"); err == nil || !strings.Contains(errs, c.ID) {
		t.Errorf("rm of an image that a container needs: %q, %v", errs, err)
	}
	c.Remove()
	if out, errs, err := d.Said(nil, "image", "rm", "nowhere.test/app:1"); err != nil || out != "removed nowhere.test/app:1\n" {
		t.Errorf("rm: %q, %q, %v", out, errs, err)
	}
	if _, errs, err := d.Said(nil, "image", "rm", "nowhere.test/app:1"); err == nil || !strings.Contains(errs, "not found") {
		t.Errorf("rm again: %q, %v", errs, err)
	}
}

// listed is an image of ls --json.
type listed struct {
	ID   string   `json:"id"`
	Tags []string `json:"tags"`
}

// TestImageCommandPulls pulls on a terminal, where it draws bars, and in a pipe, where it does not.
func TestImageCommandPulls(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ref := d.Ref("app:1")
	drawn := d.OnTerminal("image", "pull", ref)
	if !strings.Contains(drawn, "pulled "+ref) {
		t.Errorf("a terminal shows %q", drawn)
	}
	out, errs, err := d.Said(nil, "image", "pull", ref)
	if err != nil || !strings.HasPrefix(out, "pulled "+ref) || strings.Contains(errs, "\x1b") {
		t.Errorf("a pipe gets %q, %q, %v", out, errs, err)
	}
	if _, errs, err := d.Said(nil, "image", "pull", d.Ref("no-such:1")); err == nil || !strings.Contains(errs, "404") {
		t.Errorf("an image that does not exist: %q, %v", errs, err)
	}
	if _, errs, err := d.Said(nil, "image", "pull", "--state", t.TempDir(), ref); err == nil || !strings.Contains(errs, "is `cribox serve` running") {
		t.Errorf("without a daemon: %q, %v", errs, err)
	}
}

// TestImageLoadKilled ends the daemon, and the command, in the middle of an archive: nothing of it
// is left, and the next load is a whole one.
func TestImageLoadKilled(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	archive := archived(d, "app:1", "nowhere.test/app:1")
	for _, c := range []struct {
		who string
		end func(load *harness.Process)
	}{
		{"daemon", func(*harness.Process) { d.Restart() }},
		{"command", func(load *harness.Process) { load.Signal(syscall.SIGKILL) }},
	} {
		cmd := d.Cribox("image", "load")
		in, err := cmd.StdinPipe()
		d.Must(err)
		d.Must(cmd.Start())
		load := harness.Watch(cmd)
		_, err = in.Write(archive[:len(archive)/2])
		d.Must(err)
		harness.Eventually(d, "the daemon to read the archive", func() error { return harness.Unless(spools(d) == 1, "it has no archive open") })
		c.end(load)
		in.Close()
		load.Wait(t)
		if load.Err.Error() == "exit status 0" {
			t.Errorf("with its %s killed, the command ends well", c.who)
		}
		harness.Eventually(d, "the daemon to close the archive", func() error { return harness.Unless(spools(d) == 0, "it has an archive open") })
		if left, err := os.ReadDir(filepath.Join(d.Root, "content", "ingest")); err != nil || len(left) > 0 || len(d.ListImages()) > 0 {
			t.Errorf("with its %s killed, a load leaves %v (%v), images %v", c.who, left, err, d.ListImages())
		}
	}
	if out, errs, err := d.Said(bytes.NewReader(archive), "image", "load"); err != nil || !strings.HasPrefix(out, "loaded nowhere.test/app:1") {
		t.Errorf("the next load: %q, %q, %v", out, errs, err)
	}
}

// spools counts the archives that the daemon has open: files that are in no folder any more.
func spools(d *harness.Daemon) (n int) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.Process.PID()))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "/ingest/archive-") {
			n++
		}
	}
	return n
}
