package lifecycle

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestTop shows what runs, on a terminal until q is pressed, in a pipe once, and as JSON.
func TestTop(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	pod := d.RunPod()
	c := pod.Run(harness.Idle())
	name := pod.Config.Metadata.Namespace + "/" + pod.Config.Metadata.Name
	out, errs, err := d.Said(nil, "top")
	if err != nil || !strings.HasPrefix(out, "POD, CONTAINER ") || !strings.Contains(out, "\n"+name+" ") ||
		!strings.Contains(out, c.ID[:13]) || strings.Contains(out, "\x1b") {
		t.Errorf("in a pipe: %q, %q, %v", out, errs, err)
	}
	if drawn := d.Pressing("mq", name, "top"); !strings.Contains(drawn, "q: end") || !strings.HasSuffix(drawn, "\x1b[?1049l") {
		t.Errorf("on a terminal: %q", drawn)
	}
	if drawn := d.OnTerminal("top", "--once"); strings.Contains(drawn, "\x1b") || !strings.Contains(drawn, name) {
		t.Errorf("--once on a terminal: %q", drawn)
	}
	var used []struct{ Pod, Container, ID string }
	out, errs, err = d.Said(nil, "top", "--json")
	if err != nil || json.Unmarshal([]byte(out), &used) != nil || len(used) != 1 || used[0].ID != c.ID || used[0].Pod != name {
		t.Errorf("--json: %s, %s, %v", out, errs, err)
	}
	if _, errs, err := d.Said(nil, "top", "--state", t.TempDir()); err == nil || !strings.Contains(errs, "is `cribox serve` running") {
		t.Errorf("without a daemon: %s, %v", errs, err)
	}
}

// TestDebt: a network that a plugin does not release is owed, until it does.
func TestDebt(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	d.Start()
	d.Empty = d.Ledger()
	pod := d.RunPod()
	if out, errs, err := d.Said(nil, "debt"); err != nil || out != "nothing is owed\n" {
		t.Errorf("of a healthy node: %s, %s, %v", out, errs, err)
	}
	writePlugin(d, plugin, "exit 0 ;;\nDEL) exit 1")
	pod.Stop()
	pod.Remove()
	out, errs, err := d.Said(nil, "debt")
	if err != nil || !strings.Contains(out, "pod "+pod.Config.Metadata.Namespace+"/"+pod.Config.Metadata.Name) || !strings.Contains(out, "release its network") {
		t.Errorf("of a plugin that fails: %s, %s, %v", out, errs, err)
	}
	if drawn := d.OnTerminal("debt"); !strings.Contains(drawn, "release its network") {
		t.Errorf("on a terminal: %q", drawn)
	}
	var owed []struct{ ID, What string }
	out, errs, err = d.Said(nil, "debt", "--json")
	if err != nil || json.Unmarshal([]byte(out), &owed) != nil || len(owed) != 1 || owed[0].ID != pod.ID {
		t.Errorf("--json: %s, %s, %v", out, errs, err)
	}
	writePlugin(d, plugin, "exit 0")
	d.Restart() // which asks the plugin at once
	harness.Eventually(d, "nothing to be owed", func() error {
		out, errs, err := d.Said(nil, "debt")
		return harness.Unless(out == "nothing is owed\n", "debt says %s, %s, %v", out, errs, err)
	})
	if _, errs, err := d.Said(nil, "debt", "--state", t.TempDir()); err == nil || !strings.Contains(errs, "is `cribox serve` running") {
		t.Errorf("without a daemon: %s, %v", errs, err)
	}
}
