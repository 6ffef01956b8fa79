package lifecycle

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestWhyHangs: a pod start that hangs in a network plugin is logged with the name of the step, and
// told of by `cribox why` and the verbose status. When it goes on, it becomes the pod's story.
func TestWhyHangs(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	fifo := filepath.Join(d.Dir, "hang")
	d.Must(syscall.Mkfifo(fifo, 0o600))
	add := "ADD) read x <" + fifo + "\n"
	script, err := os.ReadFile(plugin)
	d.Must(err)
	d.Must(os.WriteFile(plugin, []byte(strings.Replace(string(script), "ADD) ", add, 1)), 0o755))
	d.Start()
	d.Empty = d.Ledger()
	d.WantCondition(cri.NetworkReady, true)
	config := d.PodConfig()
	name := config.Metadata.Namespace + "/" + config.Metadata.Name
	var pod *harness.Pod
	started := make(chan error, 1)
	go func() {
		var err error
		pod, err = d.TryPod(config)
		started <- err
	}()
	harness.Eventually(d, "a line about the plugin that hangs", func() error {
		log, err := os.ReadFile(d.LogFile())
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `step="plugin agent ADD"`) && strings.Contains(line, "level=warning") && strings.Contains(line, " pod=") {
				return nil
			}
		}
		return harness.Unless(false, "there is none (%v)", err)
	})
	if out := d.OnTerminal("why", name); !strings.Contains(out, "plugin agent ADD") || !strings.Contains(out, "IS AT IT") || !strings.Contains(out, "being made") {
		t.Errorf("why draws %q", out)
	}
	status, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.Must(err)
	if got := status.Info["running"]; !strings.Contains(got, `"step":"plugin agent ADD"`) || !strings.Contains(got, name) {
		t.Errorf("the verbose status says that %s runs", got)
	}
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	d.Must(err)
	d.Must(f.Close())
	d.Must(<-started)
	var told []struct {
		Kind, State string
		Steps       []struct {
			Step    string
			Running bool
		}
	}
	out, errs, err := d.Said(nil, "why", "--json", pod.ID[:12])
	if err != nil || json.Unmarshal([]byte(out), &told) != nil || len(told) != 1 || told[0].State != "ready" {
		t.Fatalf("why --json: %s, %s, %v", out, errs, err)
	}
	all := ""
	for _, s := range told[0].Steps {
		if all += s.Step + ","; s.Running {
			t.Errorf("of a pod that is ready, %s runs", s.Step)
		}
	}
	for _, want := range []string{"record,", "files,", "namespaces,", "network,", "plugin agent ADD,", "pause process,", "ready,"} {
		if !strings.Contains(all, want) {
			t.Errorf("the story has no step %q: %s", want, all)
		}
	}
}

// TestWhyFailed: the story of a pod that failed to start is told after it is gone, and that of a
// container with its pod's.
func TestWhyFailed(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	script, err := os.ReadFile(plugin)
	d.Must(err)
	failing := strings.Replace(string(script), "ADD) ", `ADD) echo '{"cniVersion":"1.1.0","code":11,"msg":"no address left"}'; exit 1`+"\n", 1)
	d.Must(os.WriteFile(plugin, []byte(failing), 0o755))
	d.Start()
	d.Empty = d.Ledger()
	d.WantCondition(cri.NetworkReady, true)
	config := d.PodConfig()
	if _, err := d.TryPod(config); err == nil {
		t.Fatal("a pod without a network starts")
	}
	out, errs, err := d.Said(nil, "why", config.Metadata.Name)
	if err != nil || !strings.Contains(out, "FAILED: ") || !strings.Contains(out, "no address left") || !strings.Contains(out, ": removed") {
		t.Errorf("why: %s, %s, %v", out, errs, err)
	}
	d.Must(os.WriteFile(plugin, script, 0o755))
	pod := d.RunPod()
	c := pod.Run(harness.Shell("exit 3"))
	c.WaitExit()
	out, errs, err = d.Said(nil, "why", pod.Config.Metadata.Namespace+"/"+pod.Config.Metadata.Name)
	if err != nil || !strings.Contains(out, "container "+pod.Config.Metadata.Namespace+"/"+pod.Config.Metadata.Name+"/") ||
		!strings.Contains(out, "ended with exit code 3, Error") || !strings.Contains(out, "root filesystem") {
		t.Errorf("why of a pod: %s, %s, %v", out, errs, err)
	}
	d.Restart()
	if out, errs, err := d.Said(nil, "why", c.ID); err != nil || !strings.Contains(out, "ended with exit code 3, Error") {
		t.Errorf("why after a restart: %s, %s, %v", out, errs, err)
	}
	if _, errs, err := d.Said(nil, "why", "no-such-pod"); err == nil || !strings.Contains(errs, `nothing is known of "no-such-pod"`) {
		t.Errorf("why of nothing: %s, %v", errs, err)
	}
	if _, errs, err := d.Said(nil, "why", "--state", t.TempDir(), c.ID); err == nil || !strings.Contains(errs, "is `cribox serve` running") {
		t.Errorf("why without a daemon: %s, %v", errs, err)
	}
}
