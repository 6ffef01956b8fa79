package crictltests

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
)

// withPlugin prepares a daemon whose one plugin folder holds a plugin of CNI 1.1.0 that answers STATUS with what does says.
func withPlugin(t *testing.T, does string) (d *daemon, plugin string) {
	t.Helper()
	d = prepareDaemon(t, withOwnNetwork())
	folder := filepath.Join(d.dir, "plugins")
	dropIns := d.configFile() + ".d"
	d.must(os.MkdirAll(folder, 0o755))
	d.must(os.MkdirAll(dropIns, 0o755))
	d.must(os.WriteFile(filepath.Join(dropIns, "plugins.toml"), fmt.Appendf(nil, "[network]\nbin_dirs = [%q]\n", folder), 0o600))
	d.must(os.WriteFile(filepath.Join(d.confDir(), "10-agent.conflist"), []byte(`{"cniVersion": "1.1.0", "name": "agent", "plugins": [{"type": "agent"}]}`), 0o600))
	plugin = filepath.Join(folder, "agent")
	d.writePlugin(plugin, does)
	return d, plugin
}

// writePlugin replaces the plugin in one step, as an installer does.
func (d *daemon) writePlugin(path, status string) {
	d.Helper()
	script := fmt.Sprintf(`#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
STATUS) %[1]s ;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.7/24"}]}' ;;
GC) cat >%[2]s.gc.new && mv %[2]s.gc.new %[2]s.gc ;;
esac
`, status, path)
	d.must(os.WriteFile(path+".new", []byte(script), 0o755))
	d.must(os.Rename(path+".new", path))
}

// TestNetworkPluginStatus: what a network plugin says of itself is the reason why the node is not ready, and pods are
// refused with it. It counts as soon as the plugin takes it back.
func TestNetworkPluginStatus(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, `echo '{"cniVersion":"1.1.0","code":50,"msg":"the agent is not running","details":"no socket"}'; exit 1`)
	d.start()
	d.empty = d.ledger()
	d.wantCondition(cri.NetworkReady, false)
	status, err := d.runtime.Status(context.Background(), &cri.StatusRequest{})
	d.must(err)
	for _, c := range status.Status.Conditions {
		if c.Type == cri.NetworkReady && (c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, "plugin agent is not ready: the agent is not running (code 50); no socket")) {
			t.Errorf("the condition is %v", c)
		}
	}
	_, err = d.tryPod(d.podConfig())
	wantCode(t, err, codes.Unavailable, "the agent is not running")

	d.writePlugin(plugin, "exit 0")
	d.wantCondition(cri.NetworkReady, true)
	if ip := d.runPod().ip(); ip != "192.0.2.7" {
		t.Errorf("the pod's address is %s", ip)
	}
}

// TestNetworkPluginStatusHangs: a plugin that does not answer STATUS holds up neither the node nor its pods.
func TestNetworkPluginStatusHangs(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	fifo := filepath.Join(d.dir, "hang")
	d.must(syscall.Mkfifo(fifo, 0o600))
	d.writePlugin(plugin, "read x <"+fifo)
	d.start()
	d.empty = d.ledger()
	d.wantCondition(cri.NetworkReady, true)
	d.runPod().ip()
	var info struct{ Network struct{ PluginStatus string } }
	d.crictlJSON(&info, "info")
	if s := info.Network.PluginStatus; s != "not answered yet" && !strings.HasPrefix(s, "no answer: ") {
		t.Errorf("crictl info says of the plugins' status: %q", s)
	}
}

// TestNetworkGarbage: after a start the plugins are told which pods are connected, so that they can give back what was
// leaked; a pod that runs is among them, whoever was killed in between.
func TestNetworkGarbage(t *testing.T) {
	t.Parallel()
	d, plugin := withPlugin(t, "exit 0")
	d.start()
	d.empty = d.ledger()
	p, gone := d.runPod(), d.runPod()
	gone.stop()
	gone.remove()
	d.kill()
	d.must(os.RemoveAll(plugin + ".gc"))
	d.start()
	eventually(t, "the plugin to be told", func() error {
		told, err := os.ReadFile(plugin + ".gc")
		if err != nil {
			return err
		}
		want := fmt.Sprintf(`"cni.dev/valid-attachments":[{"containerID":%q,"ifname":"eth0"}]`, p.id)
		if !strings.Contains(string(told), want) {
			t.Errorf("it was told %s, want %s", told, want)
		}
		return nil
	})
}
