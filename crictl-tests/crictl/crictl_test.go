package crictl

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// write keeps a request for crictl in a file.
func write(d *harness.Daemon, name string, request map[string]any) string {
	d.Helper()
	data, err := json.Marshal(request)
	d.Must(err)
	path := filepath.Join(d.Dir, name)
	d.Must(os.WriteFile(path, data, 0o600))
	return path
}

// TestJourney is a person with crictl: everything by hand, from the pull to the end.
func TestJourney(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)

	if out := d.Crictl("version"); !strings.Contains(out, "cribox") || !strings.Contains(out, "v1") {
		t.Errorf("version:\n%s", out)
	}
	var info struct {
		Status struct{ Conditions []struct{ Type string } }
	}
	if d.CrictlJSON(&info, "info"); len(info.Status.Conditions) < 2 {
		t.Errorf("info: %v", info)
	}

	ref := d.Ref(harness.Busybox)
	if out := d.Crictl("pull", ref); !strings.Contains(out, "up to date") {
		t.Errorf("pull:\n%s", out)
	}
	if _, err := d.TryCrictl("pull", "--creds", fixture.Username+":wrong", d.Ref("private:1")); err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
		t.Errorf("pull with a wrong password: %v", err)
	}
	d.Crictl("pull", "--creds", fixture.Username+":"+fixture.Password, d.Ref("private:1"))
	name, _, _ := strings.Cut(ref, ":1")
	if out := d.Crictl("images"); !strings.Contains(out, name) {
		t.Errorf("images:\n%s", out)
	}
	var image struct {
		Status struct{ ID string }
		Info   map[string]any
	}
	if d.CrictlJSON(&image, "inspecti", ref); image.Status.ID != d.IDOf(harness.Busybox) {
		t.Errorf("inspecti: %v", image)
	}
	var fs struct {
		Status struct {
			ImageFilesystems []struct{ FsID struct{ Mountpoint string } }
		}
	}
	if d.CrictlJSON(&fs, "imagefsinfo"); len(fs.Status.ImageFilesystems) == 0 || fs.Status.ImageFilesystems[0].FsID.Mountpoint == "" {
		t.Errorf("imagefsinfo: %v", fs)
	}

	podFile := write(d, "pod.json", map[string]any{
		"metadata": map[string]any{"name": "box", "namespace": "default", "uid": "u-" + d.Instance(), "attempt": 0},
		"hostname": "box", "log_directory": d.Logs(), "linux": map[string]any{}, "labels": map[string]string{"app": "box"},
	})
	containerFile := write(d, "container.json", map[string]any{
		"metadata": map[string]any{"name": "main"}, "image": map[string]any{"image": ref}, "log_path": "main.log", "linux": map[string]any{},
		"command": []string{"sh", "-c", "trap 'exit 4' TERM; echo hello; echo oops >&2; while :; do usleep 10000; done"},
	})
	pod := strings.TrimSpace(d.Crictl("runp", podFile))
	d.Marks.Add(pod)
	if out := d.Crictl("pods", "--name", "box", "--state", "ready"); !strings.Contains(out, pod[:13]) {
		t.Errorf("pods:\n%s", out)
	}
	var inspected struct {
		Status struct {
			State   string
			Network struct{ IP string }
		}
	}
	if d.CrictlJSON(&inspected, "inspectp", pod); inspected.Status.State != "SANDBOX_READY" || inspected.Status.Network.IP == "" {
		t.Errorf("inspectp: %v", inspected)
	}
	c := strings.TrimSpace(d.Crictl("create", pod, containerFile, podFile))
	d.Marks.Add(c)
	if out := d.Crictl("ps", "-a"); !strings.Contains(out, c[:13]) || !strings.Contains(out, "Created") {
		t.Errorf("ps -a:\n%s", out)
	}
	d.Crictl("start", c)
	if out := d.Crictl("ps"); !strings.Contains(out, c[:13]) || !strings.Contains(out, "Running") {
		t.Errorf("ps:\n%s", out)
	}
	if out := d.Crictl("exec", "--sync", c[:13], "hostname"); strings.TrimSpace(out) != "box" {
		t.Errorf("exec --sync: %q", out)
	}
	if out, err := d.TryCrictl("exec", "-s", c, "sh", "-c", "echo err >&2; exit 3"); err == nil {
		t.Errorf("exec of a command that fails: %q", out)
	}
	harness.Eventually(t, "crictl logs", func() error {
		out := d.Crictl("logs", c)
		return harness.Unless(out == "hello\n", "%q", out)
	})
	var stats struct {
		Stats []struct{ Attributes struct{ ID string } }
	}
	if d.CrictlJSON(&stats, "stats", "-o", "json"); len(stats.Stats) != 1 || stats.Stats[0].Attributes.ID != c {
		t.Errorf("stats: %v", stats)
	}
	var status struct {
		Status struct {
			State    string
			ExitCode int
		}
	}
	d.Crictl("stop", "--timeout", "30", c)
	if d.CrictlJSON(&status, "inspect", c); status.Status.State != "CONTAINER_EXITED" || status.Status.ExitCode != 4 {
		t.Errorf("inspect after stop: %v", status)
	}
	d.Crictl("rm", c)
	d.Crictl("stopp", pod)
	if out := d.Crictl("pods", "--state", "notready", "-q"); strings.TrimSpace(out) != pod {
		t.Errorf("pods after stopp: %q", out)
	}
	d.Crictl("rmp", pod)
	if out := d.Crictl("pods", "-q"); out != "" {
		t.Errorf("pods after rmp: %q", out)
	}
	d.Crictl("rmi", ref)
	d.Crictl("rmi", "--all")
	if out := d.Crictl("images", "-q"); out != "" {
		t.Errorf("images after rmi: %q", out)
	}
	if _, err := d.TryCrictl("inspecti", ref); err == nil {
		t.Error("inspecti of an image that is gone")
	}
}

// TestJourneyInOneCommand: crictl run, and rmp by force.
func TestJourneyInOneCommand(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	podFile := write(d, "pod.json", map[string]any{
		"metadata":      map[string]any{"name": "quick", "namespace": "default", "uid": "q-" + d.Instance()},
		"log_directory": d.Logs(), "hostname": "quick", "linux": map[string]any{},
	})
	containerFile := write(d, "container.json", map[string]any{
		"metadata": map[string]any{"name": "main"}, "image": map[string]any{"image": d.Ref(harness.Busybox)}, "log_path": "quick.log",
		"command": []string{"sleep", "1d"}, "linux": map[string]any{},
	})
	c := strings.TrimSpace(d.Crictl("run", "--with-pull", containerFile, podFile))
	d.Marks.Add(c)
	if out := d.Crictl("ps", "-q"); strings.TrimSpace(out) != c {
		t.Errorf("ps -q: %q, want %s", out, c)
	}
	d.Crictl("rmp", "--all", "--force")
	if out := d.Crictl("ps", "-a", "-q"); out != "" {
		t.Errorf("ps -a after rmp --all --force: %q", out)
	}
}
