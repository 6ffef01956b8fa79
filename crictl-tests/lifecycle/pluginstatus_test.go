package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// withPlugin prepares a daemon whose one plugin folder holds a plugin of CNI 1.1.0 that answers STATUS with what does says.
func withPlugin(t *testing.T, does string) (d *harness.Daemon, plugin string) {
	t.Helper()
	d = harness.PrepareDaemon(t, harness.WithOwnNetwork())
	folder := filepath.Join(d.Dir, "plugins")
	dropIns := d.ConfigFile() + ".d"
	d.Must(os.MkdirAll(folder, 0o755))
	d.Must(os.MkdirAll(dropIns, 0o755))
	d.Must(os.WriteFile(filepath.Join(dropIns, "plugins.toml"), fmt.Appendf(nil, "[network]\nbin_dirs = [%q]\n", folder), 0o600))
	d.Must(os.WriteFile(filepath.Join(d.ConfDir(), "10-agent.conflist"), []byte(`{"cniVersion": "1.1.0", "name": "agent", "plugins": [{"type": "agent"}]}`), 0o600))
	plugin = filepath.Join(folder, "agent")
	writePlugin(d, plugin, does)
	return d, plugin
}

// writePlugin replaces the plugin in one step, as an installer does.
func writePlugin(d *harness.Daemon, path, status string) {
	d.Helper()
	script := fmt.Sprintf(`#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
STATUS) %[1]s ;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.7/24"}]}' ;;
GC) cat >%[2]s.gc.new && mv %[2]s.gc.new %[2]s.gc ;;
esac
`, status, path)
	d.Must(os.WriteFile(path+".new", []byte(script), 0o755))
	d.Must(os.Rename(path+".new", path))
}

// TestNetworkPluginStatus: what a network plugin says of itself is the reason why the node is not ready, and pods are
// refused with it. It counts as soon as the plugin takes it back.
func TestNetworkPluginStatus(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, `echo '{"cniVersion":"1.1.0","code":50,"msg":"the agent is not running","details":"no socket"}'; exit 1`)
	d.Start()
	d.Empty = d.Ledger()
	d.WantCondition(cri.NetworkReady, false)
	status, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
	d.Must(err)
	for _, c := range status.Status.Conditions {
		if c.Type == cri.NetworkReady && (c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, "plugin agent is not ready: the agent is not running (code 50); no socket")) {
			t.Errorf("the condition is %v", c)
		}
	}
	_, err = d.TryPod(d.PodConfig())
	harness.WantCode(t, err, codes.Unavailable, "the agent is not running")

	writePlugin(d, plugin, "exit 0")
	d.WantCondition(cri.NetworkReady, true)
	if ip := d.RunPod().IP(); ip != "192.0.2.7" {
		t.Errorf("the pod's address is %s", ip)
	}
}

// TestNetworkPluginStatusHangs: a plugin that does not answer STATUS holds up neither the node nor its pods.
func TestNetworkPluginStatusHangs(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	fifo := filepath.Join(d.Dir, "hang")
	d.Must(syscall.Mkfifo(fifo, 0o600))
	writePlugin(d, plugin, "read x <"+fifo)
	d.Start()
	d.Empty = d.Ledger()
	d.WantCondition(cri.NetworkReady, true)
	d.RunPod().IP()
	var info struct{ Network struct{ PluginStatus string } }
	d.CrictlJSON(&info, "info")
	if s := info.Network.PluginStatus; s != "no answer yet" && !strings.HasPrefix(s, "no answer: ") {
		t.Errorf("crictl info says of the plugins' status: %q", s)
	}
}

// TestNetworkGarbage: after a start the plugins are told which pods are connected, so that they can give back what was
// leaked; a pod that runs is among them, whoever was killed in between.
func TestNetworkGarbage(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	d.Start()
	d.Empty = d.Ledger()
	p, gone := d.RunPod(), d.RunPod()
	gone.Stop()
	gone.Remove()
	d.Kill()
	d.Must(os.RemoveAll(plugin + ".gc"))
	d.Start()
	harness.Eventually(t, "the plugin to be told", func() error {
		told, err := os.ReadFile(plugin + ".gc")
		if err != nil {
			return err
		}
		want := fmt.Sprintf(`"cni.dev/valid-attachments":[{"containerID":%q,"ifname":"eth0"}]`, p.ID)
		if !strings.Contains(string(told), want) {
			t.Errorf("it was told %s, want %s", told, want)
		}
		return nil
	})
}
