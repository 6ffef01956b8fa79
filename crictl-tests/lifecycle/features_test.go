package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// withRuntimes is WithWrappers for scripts that run only when a runtime is asked for its features.
func withRuntimes(t *testing.T, features map[string]string) *harness.Daemon {
	t.Helper()
	scripts := map[string]string{}
	for name, script := range features {
		scripts[name] = "if [ \"$1\" = features ]; then\n" + script + "\nfi"
	}
	return harness.WithWrappers(t, scripts)
}

// handlers returns the features of every handler by its name.
func handlers(d *harness.Daemon) map[string]*cri.RuntimeHandlerFeatures {
	d.Helper()
	r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
	d.Must(err)
	all := map[string]*cri.RuntimeHandlerFeatures{}
	for _, h := range r.RuntimeHandlers {
		if all[h.Name] != nil {
			d.Errorf("handler %q is told twice", h.Name)
		}
		all[h.Name] = h.Features
	}
	return all
}

func recursivelyReadOnly(c *cri.ContainerConfig) {
	c.Mounts = []*cri.Mount{{HostPath: "/tmp", ContainerPath: "/deep", Readonly: true, RecursiveReadOnly: true}}
}

// TestHandlerFeatures: each handler has the features that its own runtime and the kernel have, and a pod is refused what its handler lacks.
func TestHandlerFeatures(t *testing.T) {
	t.Parallel()
	d := withRuntimes(t, map[string]string{
		"silent": "exit 1",
		"babel":  "echo no JSON; exit 0",
		"old":    `echo '{"ociVersionMax": "1.0.2", "linux": {"namespaces": ["user"]}}'; exit 0`,
		"ro":     `echo '{"mountOptions": ["ro", "rro"]}'; exit 0`,
	})
	d.Start()
	d.Empty = d.Ledger()
	all := handlers(d)
	for name, want := range map[string]*cri.RuntimeHandlerFeatures{
		"":       {RecursiveReadOnlyMounts: true, UserNamespaces: true},
		"runc":   {RecursiveReadOnlyMounts: true, UserNamespaces: true},
		"silent": {}, "babel": {}, "old": {},
		"ro": {RecursiveReadOnlyMounts: true},
	} {
		if all[name] == nil {
			t.Errorf("handler %q is missing", name)
			continue
		}
		harness.WantEqual(t, "handler "+name, all[name], want)
	}
	if len(all) != 6 {
		t.Errorf("%d handlers: %v", len(all), all)
	}
	for handler, able := range map[string]bool{"runc": true, "ro": true, "old": false, "silent": false} {
		p, err := d.InHandler(handler, harness.OnHostNetwork)
		d.Must(err)
		if got := p.Status().RuntimeHandler; got != handler {
			t.Errorf("the pod of handler %s has handler %q", handler, got)
		}
		_, err = p.TryCreate(p.ContainerConfig(harness.Idle(), recursivelyReadOnly))
		if able {
			d.Must(err)
		} else {
			harness.WantCode(t, err, codes.FailedPrecondition, "RROUnsupported", "/deep")
		}
	}
	var info struct {
		Config struct {
			Runtimes map[string]struct{ Path string }
			Network  struct {
				ConfDir string `json:"conf_dir"`
			}
		}
		Runtimes map[string]struct{ Version, OCIVersion, Error string }
		Network  struct {
			Network, Error string
			Plugins        []string
		}
		Host map[string]any
	}
	d.CrictlJSON(&info, "info")
	if r := info.Runtimes; r["runc"].Version == "" || r["runc"].OCIVersion == "" || r["old"].OCIVersion != "1.0.2" || !strings.Contains(r["silent"].Error, "exit status 1") {
		t.Errorf("crictl info tells of the runtimes: %v", r)
	}
	if c := info.Config; len(c.Runtimes) != 5 || c.Runtimes["old"].Path != filepath.Join(d.Dir, "old") || c.Network.ConfDir != d.ConfDir() {
		t.Errorf("crictl info tells of the configuration: %v", c)
	}
	if n := info.Network; n.Network == "" || n.Error != "" || len(n.Plugins) > 0 || len(info.Host) == 0 { // the default network runs no plugin
		t.Errorf("crictl info tells of the network: %v, and of the host: %v", n, info.Host)
	}
}

// TestFeaturesAreRetried: a runtime that could not answer when the daemon started, for whatever passes, costs no feature until the next
// start, and the start no more than a moment.
func TestFeaturesAreRetried(t *testing.T) {
	t.Parallel()
	d := withRuntimes(t, map[string]string{
		"killed":  "[ ! -e $dir/trouble ] || kill -9 $$",
		"stuck":   "[ ! -e $dir/trouble ] || { sleep 1000 & sleep 1000; }", // the second one has the pipe too
		"endless": "[ ! -e $dir/trouble ] || exec yes",
	})
	trouble := filepath.Join(d.Dir, "trouble")
	d.Must(os.WriteFile(trouble, nil, 0o600))
	d.Start()
	d.Empty = d.Ledger()
	d.Pulled(harness.Busybox)
	for name, f := range handlers(d) {
		if able := name == "" || name == "runc"; f.UserNamespaces != able || f.RecursiveReadOnlyMounts != able {
			t.Errorf("handler %q tells: %v", name, f)
		}
	}
	_, err := d.InHandler("killed", harness.InUserNamespace)
	harness.WantCode(t, err, codes.FailedPrecondition, "killed features")
	log := harness.LastLines(d.LogFile(), 1000)
	for _, name := range []string{"killed", "stuck", "endless"} {
		if !strings.Contains(log, "level=warning") || !strings.Contains(log, name+" features") {
			t.Errorf("the log does not tell of %s:\n%s", name, log)
		}
	}
	d.Must(os.Remove(trouble))
	harness.Eventually(t, "all features", func() error {
		for name, f := range handlers(d) {
			if !f.UserNamespaces || !f.RecursiveReadOnlyMounts {
				return fmt.Errorf("handler %q tells: %v", name, f)
			}
		}
		return nil
	})
	p, err := d.InHandler("killed", harness.InUserNamespace)
	d.Must(err)
	p.Run(harness.Idle(), recursivelyReadOnly).Exec("true")
}

// TestNetworkFailureIsReported: the last failure of a network plugin is found by whoever looks at the node.
func TestNetworkFailureIsReported(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithOwnNetwork())
	d.Must(os.WriteFile(filepath.Join(d.ConfDir(), "10-bad.conflist"), []byte(`{"cniVersion": "1.0.0", "name": "bad", "plugins": [
		{"type": "bridge", "bridge": "no name for a link is as long as this one", "ipam": {"type": "host-local", "subnet": "`+d.Subnet+`"}}]}`), 0o600))
	d.WantCondition(cri.NetworkReady, true)
	refused, err := d.TryPod(d.PodConfig())
	if err == nil {
		t.Fatalf("pod %s was connected to a bridge that cannot be", refused.ID)
	}
	var info struct {
		Network struct {
			Network, File string
			LastFailure   struct{ At, Call, Pod, Error string }
		}
	}
	d.CrictlJSON(&info, "info")
	if n := info.Network; n.Network != "bad" || n.File != "10-bad.conflist" || n.LastFailure.Call != "ADD" || n.LastFailure.Pod == "" || !strings.Contains(n.LastFailure.Error, "bridge") {
		t.Errorf("crictl info tells of the network: %+v; the pod: %v", n, err)
	}
}
