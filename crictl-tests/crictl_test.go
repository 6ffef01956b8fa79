package crictltests

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// crictlFlags make crictl talk to this daemon, with an empty configuration of its own.
func (d *daemon) crictlFlags() []string {
	d.Helper()
	config := filepath.Join(d.dir, "crictl.yaml")
	d.must(os.WriteFile(config, nil, 0o600))
	return []string{"--config", config, "--runtime-endpoint", "unix://" + d.socket, "--image-endpoint", "unix://" + d.socket, "--timeout", "60s"}
}

// tryCrictl runs the real crictl against the daemon.
func (d *daemon) tryCrictl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary("crictl"), append(d.crictlFlags(), args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("crictl %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), err
}

// crictl returns what crictl prints, or ends the test.
func (d *daemon) crictl(args ...string) string {
	d.Helper()
	out, err := d.tryCrictl(args...)
	d.must(err)
	return out
}

// crictlJSON decodes what crictl prints into v.
func (d *daemon) crictlJSON(v any, args ...string) {
	d.Helper()
	out := d.crictl(args...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		d.Fatalf("crictl %s does not print JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// write keeps a request for crictl in a file.
func (d *daemon) write(name string, request map[string]any) string {
	d.Helper()
	data, err := json.Marshal(request)
	d.must(err)
	path := filepath.Join(d.dir, name)
	d.must(os.WriteFile(path, data, 0o600))
	return path
}

// TestJourney is a person with crictl: everything by hand, from the pull to the end.
func TestJourney(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)

	if out := d.crictl("version"); !strings.Contains(out, "cribox") || !strings.Contains(out, "v1") {
		t.Errorf("version:\n%s", out)
	}
	var info struct {
		Status struct{ Conditions []struct{ Type string } }
	}
	if d.crictlJSON(&info, "info"); len(info.Status.Conditions) < 2 {
		t.Errorf("info: %v", info)
	}

	ref := d.ref(busybox)
	if out := d.crictl("pull", ref); !strings.Contains(out, "up to date") {
		t.Errorf("pull:\n%s", out)
	}
	if _, err := d.tryCrictl("pull", "--creds", fixture.Username+":wrong", d.ref("private:1")); err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
		t.Errorf("pull with a wrong password: %v", err)
	}
	d.crictl("pull", "--creds", fixture.Username+":"+fixture.Password, d.ref("private:1"))
	name, _, _ := strings.Cut(ref, ":1")
	if out := d.crictl("images"); !strings.Contains(out, name) {
		t.Errorf("images:\n%s", out)
	}
	var image struct {
		Status struct{ ID string }
		Info   map[string]any
	}
	if d.crictlJSON(&image, "inspecti", ref); image.Status.ID != d.idOf(busybox) {
		t.Errorf("inspecti: %v", image)
	}
	var fs struct {
		Status struct {
			ImageFilesystems []struct{ FsID struct{ Mountpoint string } }
		}
	}
	if d.crictlJSON(&fs, "imagefsinfo"); len(fs.Status.ImageFilesystems) == 0 || fs.Status.ImageFilesystems[0].FsID.Mountpoint == "" {
		t.Errorf("imagefsinfo: %v", fs)
	}

	podFile := d.write("pod.json", map[string]any{
		"metadata": map[string]any{"name": "box", "namespace": "default", "uid": "u-" + d.instance(), "attempt": 0},
		"hostname": "box", "log_directory": d.logs(), "linux": map[string]any{}, "labels": map[string]string{"app": "box"},
	})
	containerFile := d.write("container.json", map[string]any{
		"metadata": map[string]any{"name": "main"}, "image": map[string]any{"image": ref}, "log_path": "main.log", "linux": map[string]any{},
		"command": []string{"sh", "-c", "trap 'exit 4' TERM; echo hello; echo oops >&2; while :; do usleep 10000; done"},
	})
	pod := strings.TrimSpace(d.crictl("runp", podFile))
	d.marks.add(pod)
	if out := d.crictl("pods", "--name", "box", "--state", "ready"); !strings.Contains(out, pod[:13]) {
		t.Errorf("pods:\n%s", out)
	}
	var inspected struct {
		Status struct {
			State   string
			Network struct{ IP string }
		}
	}
	if d.crictlJSON(&inspected, "inspectp", pod); inspected.Status.State != "SANDBOX_READY" || inspected.Status.Network.IP == "" {
		t.Errorf("inspectp: %v", inspected)
	}
	c := strings.TrimSpace(d.crictl("create", pod, containerFile, podFile))
	d.marks.add(c)
	if out := d.crictl("ps", "-a"); !strings.Contains(out, c[:13]) || !strings.Contains(out, "Created") {
		t.Errorf("ps -a:\n%s", out)
	}
	d.crictl("start", c)
	if out := d.crictl("ps"); !strings.Contains(out, c[:13]) || !strings.Contains(out, "Running") {
		t.Errorf("ps:\n%s", out)
	}
	if out := d.crictl("exec", "--sync", c[:13], "hostname"); strings.TrimSpace(out) != "box" {
		t.Errorf("exec --sync: %q", out)
	}
	if out, err := d.tryCrictl("exec", "-s", c, "sh", "-c", "echo err >&2; exit 3"); err == nil {
		t.Errorf("exec of a command that fails: %q", out)
	}
	eventually(t, "crictl logs", func() error {
		out := d.crictl("logs", c)
		return unless(out == "hello\n", "%q", out)
	})
	var stats struct {
		Stats []struct{ Attributes struct{ ID string } }
	}
	if d.crictlJSON(&stats, "stats", "-o", "json"); len(stats.Stats) != 1 || stats.Stats[0].Attributes.ID != c {
		t.Errorf("stats: %v", stats)
	}
	var status struct {
		Status struct {
			State    string
			ExitCode int
		}
	}
	d.crictl("stop", "--timeout", "30", c)
	if d.crictlJSON(&status, "inspect", c); status.Status.State != "CONTAINER_EXITED" || status.Status.ExitCode != 4 {
		t.Errorf("inspect after stop: %v", status)
	}
	d.crictl("rm", c)
	d.crictl("stopp", pod)
	if out := d.crictl("pods", "--state", "notready", "-q"); strings.TrimSpace(out) != pod {
		t.Errorf("pods after stopp: %q", out)
	}
	d.crictl("rmp", pod)
	if out := d.crictl("pods", "-q"); out != "" {
		t.Errorf("pods after rmp: %q", out)
	}
	d.crictl("rmi", ref)
	d.crictl("rmi", "--all")
	if out := d.crictl("images", "-q"); out != "" {
		t.Errorf("images after rmi: %q", out)
	}
	if _, err := d.tryCrictl("inspecti", ref); err == nil {
		t.Error("inspecti of an image that is gone")
	}
}

// TestJourneyInOneCommand: crictl run, and rmp by force.
func TestJourneyInOneCommand(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	podFile := d.write("pod.json", map[string]any{
		"metadata":      map[string]any{"name": "quick", "namespace": "default", "uid": "q-" + d.instance()},
		"log_directory": d.logs(), "hostname": "quick", "linux": map[string]any{},
	})
	containerFile := d.write("container.json", map[string]any{
		"metadata": map[string]any{"name": "main"}, "image": map[string]any{"image": d.ref(busybox)}, "log_path": "quick.log",
		"command": []string{"sleep", "1d"}, "linux": map[string]any{},
	})
	c := strings.TrimSpace(d.crictl("run", "--with-pull", containerFile, podFile))
	d.marks.add(c)
	if out := d.crictl("ps", "-q"); strings.TrimSpace(out) != c {
		t.Errorf("ps -q: %q, want %s", out, c)
	}
	d.crictl("rmp", "--all", "--force")
	if out := d.crictl("ps", "-a", "-q"); out != "" {
		t.Errorf("ps -a after rmp --all --force: %q", out)
	}
}
