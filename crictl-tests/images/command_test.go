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

	"github.com/cribox/cribox/crictl-tests/fixture"
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

// TestImageSave moves an image from one node to another, by a pipe and by a file.
func TestImageSave(t *testing.T) {
	t.Parallel()
	from, to := harness.NewDaemon(t), harness.NewDaemon(t)
	ref, id := from.Ref("app:1"), from.Pulled("app:1")
	archive, errs, err := from.Said(nil, "image", "save", ref)
	if err != nil {
		t.Fatalf("save: %s, %v", errs, err)
	}
	if out, errs, err := to.Said(strings.NewReader(archive), "image", "load"); err != nil || !strings.HasPrefix(out, "loaded "+ref) {
		t.Errorf("load: %q, %q, %v", out, errs, err)
	}
	if i := to.ImageStatus(ref); i == nil || i.Id != id {
		t.Errorf("the other node has %v", i)
	}
	file := filepath.Join(t.TempDir(), "app.tar")
	if _, errs, err := from.Said(nil, "image", "save", "-o", file, ref); err != nil {
		t.Errorf("save -o: %s, %v", errs, err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != archive {
		t.Errorf("the file has %d bytes (%v), the pipe got %d", len(b), err, len(archive))
	}
	if _, errs, err := from.Said(nil, "image", "save", "-o", file+"2", "no-such:1"); err == nil || !strings.Contains(errs, "not found") {
		t.Errorf("save of no image: %q, %v", errs, err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("beside the archive are %v (%v)", left, err)
	}
	if out, _, err := to.Said(nil, "image", "prune", "--dry-run"); err != nil || !strings.HasPrefix(out, "would remove "+ref) {
		t.Errorf("prune --dry-run: %q, %v", out, err)
	}
	if out, _, err := to.Said(nil, "image", "prune"); err != nil || !strings.HasPrefix(out, "removed "+ref) || to.ImageStatus(ref) != nil {
		t.Errorf("prune: %q, %v", out, err)
	}
}

// TestImportFolder puts archives into the folder before the daemon starts, and while it runs. A bad
// one costs the others nothing; a start loads again what has been removed, and only that.
func TestImportFolder(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Stop()
	folder := filepath.Join(d.Root, "import")
	put := func(name string, b []byte) {
		d.Must(os.WriteFile(filepath.Join(folder, name+".part"), b, 0o600))
		d.Must(os.Rename(filepath.Join(folder, name+".part"), filepath.Join(folder, name)))
	}
	listed := func(ref string) {
		t.Helper()
		harness.Eventually(d, ref+" to be listed", func() error { return harness.Unless(d.ImageStatus(ref) != nil, "it is not") })
	}
	put("bad.tar", []byte("no archive"))
	put("first.tar", archived(d, "app:1", "nowhere.test/first:1"))
	d.Start()
	listed("nowhere.test/first:1")
	put("second.tar", archived(d, "busybox:1", "nowhere.test/second:1"))
	listed("nowhere.test/second:1")
	d.Must(d.RemoveImage("nowhere.test/first:1"))
	d.Restart()
	listed("nowhere.test/first:1")
	for file, want := range map[string]int{"bad.tar": 2, "first.tar": 2, "second.tar": 1} {
		harness.Eventually(d, fmt.Sprintf("the log to name %s %d times", file, want), func() error {
			log, err := os.ReadFile(d.LogFile())
			d.Must(err)
			got := strings.Count(string(log), "/import/"+file)
			return harness.Unless(got == want, "it does %d times", got)
		})
	}
	for _, name := range []string{"bad.tar", "first.tar", "second.tar"} {
		d.Must(os.Remove(filepath.Join(folder, name)))
	}
}

// layersOf returns the folders of unpacked layers that a container made of the image has.
func layersOf(d *harness.Daemon) (dirs []string) {
	d.Helper()
	all, err := filepath.Glob(filepath.Join(d.Root, "layers", "[0-9]*", "fs"))
	d.Must(err)
	return all
}

// damage changes the file in every unpacked layer that has it, and says how many those are.
func damage(d *harness.Daemon, file string) (n int) {
	d.Helper()
	for _, dir := range layersOf(d) {
		path := filepath.Join(dir, file)
		if _, err := os.Lstat(path); err == nil {
			d.Must(os.WriteFile(path, []byte("damaged"), 0o755))
			n++
		}
	}
	return n
}

// TestImageVerify damages a layer under a running container. It is found, on a terminal and in a
// pipe, and repaired; the container runs on, and a new one has the whole image.
func TestImageVerify(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ref, id := d.Ref("app:1"), d.Pulled("app:1")
	if out, errs, err := d.Said(nil, "image", "verify"); err != nil || !strings.Contains(out, "ok        "+ref) || errs != "" {
		t.Fatalf("an undamaged node: %q, %q, %v", out, errs, err)
	}
	image := harness.OfImage(id)
	pod := d.RunPod()
	running := pod.Run(harness.Shell("while :; do sleep 1; done"), image)
	if damage(d, "etc/group") == 0 {
		t.Fatal("no layer has /etc/group")
	}
	out, errs, err := d.Said(nil, "image", "verify", ref)
	if err == nil || !strings.Contains(out, "DAMAGED   "+ref) || !strings.Contains(out, `"/etc/group" has another size`) ||
		!strings.Contains(out, running.ID) || !strings.Contains(errs, "1 of 1 images are damaged") {
		t.Errorf("a damaged layer: %q, %q, %v", out, errs, err)
	}
	if drawn := d.OnTerminal("image", "verify", "--repair", ref); !strings.Contains(drawn, "repaired  "+ref) {
		t.Errorf("a repair on a terminal draws %q", drawn)
	}
	var found []struct {
		Sound bool `json:"sound"`
	}
	out, errs, err = d.Said(nil, "image", "verify", "--json")
	d.Must(json.Unmarshal([]byte(out), &found))
	if err != nil || errs != "" || len(found) == 0 || !found[0].Sound {
		t.Errorf("after the repair: %s, %q, %v", out, errs, err)
	}
	if got := running.Status(); got.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container that has the damaged layer is %v", got.State)
	}
	c := pod.Run(harness.Shell("cat /etc/group"), image, harness.Called("second"))
	c.WaitExit()
	if got := harness.TextOf(c.FinalLog(), "stdout"); strings.Contains(got, "damaged") || got == "" {
		t.Errorf("a new container has the file %q", got)
	}
	pod.Remove()
	d.Restart() // which deletes the damaged layer
	if _, errs, err := d.Said(nil, "image", "verify", "--state", t.TempDir()); err == nil || !strings.Contains(errs, "is `cribox serve` running") {
		t.Errorf("without a daemon: %q, %v", errs, err)
	}
}

// TestImageVerifyKilled ends the daemon at each step of a repair. The image is listed after each
// start, and the next repair sets it right.
func TestImageVerifyKilled(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, func(s *harness.Settings) { s.Binary = harness.Steps })
	ref := d.Ref("app:1")
	d.Pulled("app:1")
	for _, step := range []string{"pull.blob.written", "verify.unpacked", "pull.record.written", "verify.recorded"} {
		if damage(d, "etc/group") == 0 {
			t.Fatalf("before %s, no layer has /etc/group", step)
		}
		blobs, err := filepath.Glob(filepath.Join(d.Root, "content", "blobs", "sha256", "*"))
		d.Must(err)
		for _, b := range blobs {
			if info, err := os.Stat(b); err == nil && info.Size() > 10<<10 {
				d.Must(os.WriteFile(b, make([]byte, info.Size()), 0o444))
			}
		}
		d.Stop()
		d.Env = append(d.Env, "CRIBOX_STEP_KILL="+step)
		d.Start()
		if _, _, err := d.Said(nil, "image", "verify", "--repair"); err == nil {
			t.Errorf("with the daemon killed at %s, the command ends well", step)
		}
		d.Heal()
		if d.ImageStatus(ref) == nil {
			t.Fatalf("killed at %s, the image is lost", step)
		}
		if out, errs, err := d.Said(nil, "image", "verify", "--repair"); err != nil {
			t.Errorf("after a kill at %s: %s, %s, %v", step, out, errs, err)
		}
		if out, errs, err := d.Said(nil, "image", "verify"); err != nil || strings.Contains(out, "DAMAGED") {
			t.Errorf("after a kill at %s and a repair: %s, %s, %v", step, out, errs, err)
		}
	}
	d.Restart() // which deletes the damaged layers
}

// TestHungPull: a pull whose download hangs is logged with the name of the step, once, and shown
// by `cribox image pulls` and `cribox why`.
func TestHungPull(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := fixture.ForTest(t)
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 100})
	pulled := make(chan error, 1)
	go func() { _, err := d.TryPull(r.Ref("app:1"), nil); pulled <- err }()
	lines := func() (all []string) {
		log, err := os.ReadFile(d.LogFile())
		d.Must(err)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "a step takes long") && strings.Contains(line, " image=") {
				all = append(all, line)
			}
		}
		return all
	}
	harness.Eventually(d, "a line about the pull that hangs", func() error { return harness.Unless(len(lines()) > 0, "there is none") })
	if out, errs, err := d.Said(nil, "image", "pulls"); err != nil || !strings.Contains(out, r.Ref("app:1")) || strings.Contains(out, "asking the registry") {
		t.Errorf("pulls: %s, %s, %v", out, errs, err)
	}
	if out, errs, err := d.Said(nil, "why", r.Ref("app:1")); err != nil || !strings.Contains(out, "IS AT IT") {
		t.Errorf("why: %s, %s, %v", out, errs, err)
	}
	held.Remove()
	d.Must(<-pulled)
	for i, line := range lines() {
		if !strings.Contains(line, "level=warning") || !strings.Contains(line, "step=") {
			t.Errorf("line %d is %s", i, line)
		}
	}
}
