package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kind is what differs between the runtimes. In a configuration, $BIN, $ROOT, $CERTS, $CNI and $PAUSE
// stand for paths and the reference of the pause image.
type kind struct {
	name    string
	config  string
	command []string
}

// Sockets and state are in /run, which is a tmpfs of our own.
var kinds = []kind{
	{"containerd", `version = 3
root = "$ROOT"
state = "/run/containerd"
# None of these is asked for anything here; they would write to other folders of the host.
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "$CERTS"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "$PAUSE"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["$BIN/cni"]
conf_dir = "$CNI"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "$BIN/runc"
SystemdCgroup = false
`, []string{"$BIN/containerd/containerd", "--config", "$CONFIG"}},
	{"cribox", `root = "$ROOT"
state = "/run/cribox"
listen = "unix:///run/cribox/cribox.sock"
cgroup_driver = "cgroupfs"
[images]
registry_config = "$CERTS"
[network]
default = $OWN
subnet = "10.88.$N.0/24"
conf_dir = "$CNI"
bin_dirs = ["$BIN/cni"]
[runtimes.runc]
path = "$BIN/runc"
`, []string{"$BIN/cribox", "serve", "--config", "$CONFIG"}},
}

// network is containerd's, and cribox's own does the same. With the flag -plugins it is the same for
// both but for the link and the range.
const network = `{
  "cniVersion": "1.0.0", "name": "$NAME",
  "plugins": [
    {"type": "bridge", "bridge": "cmp$N", "isGateway": true, "ipMasq": true, "ipam":
      {"type": "host-local", "dataDir": "/run/$NAME-leases", "ranges": [[{"subnet": "10.88.$N.0/24"}]],
       "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// runtime is one of the daemons, and what was measured of it.
type runtime struct {
	name    string
	version string
	command []string
	cgroup  string // of the daemon and all its pods
	logs    string
	log     *os.File
	daemon  *exec.Cmd
	conn    *grpc.ClientConn
	pods    cri.RuntimeServiceClient
	image   string
	made    int // pods so far
	figures figures
}

// newRuntime writes the files of a runtime.
func newRuntime(o options, k kind, n int, certs, pause string) (*runtime, error) {
	dir := filepath.Join(o.work, k.name)
	config, cni := filepath.Join(dir, "config.toml"), filepath.Join(dir, "net.d")
	fill := strings.NewReplacer("$BIN", o.bin, "$ROOT", filepath.Join(dir, "root"), "$CERTS", certs, "$CNI", cni,
		"$PAUSE", pause, "$CONFIG", config, "$NAME", k.name, "$N", fmt.Sprint(n+1), "$OWN", fmt.Sprint(!o.plugins))
	r := &runtime{
		name: k.name, cgroup: filepath.Join("/", o.cgroup, k.name), logs: filepath.Join(dir, "logs"),
		command: strings.Split(fill.Replace(strings.Join(k.command, "\n")), "\n"), figures: figures{},
	}
	for _, folder := range []string{cni, r.logs} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	files := map[string]string{config: k.config}
	if k.name != "cribox" || o.plugins {
		files[filepath.Join(cni, "10-compare.conflist")] = network
	}
	for file, text := range files {
		if err := os.WriteFile(file, []byte(fill.Replace(text)), 0o600); err != nil {
			return nil, err
		}
	}
	var err error
	r.log, err = os.Create(filepath.Join(dir, "daemon.log"))
	return r, err
}

// daemonCgroup has the daemon and its helpers, and no pod.
func (r *runtime) daemonCgroup() string { return filepath.Join(r.cgroup, "daemon") }

func (r *runtime) socket() string { return filepath.Join("/run", r.name, r.name+".sock") }

// begin starts the runtime for the first time, and pulls the image.
func (r *runtime) begin(ctx context.Context, image string) error {
	if err := r.start(ctx, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	version, err := r.pods.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	r.version = version.RuntimeVersion
	r.image, err = r.pull(ctx, image)
	return err
}

// start starts the daemon in a cgroup of its own, below the runtime's, and returns when it lists as
// many pods and has a network for more.
func (r *runtime) start(ctx context.Context, pods int) error {
	own := cgroupFolder(r.daemonCgroup())
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	script := `echo $$ >"$0" && exec "$@"`
	r.daemon = exec.Command("sh", append([]string{"-c", script, filepath.Join(own, "cgroup.procs")}, r.command...)...)
	r.daemon.Stdout, r.daemon.Stderr = r.log, r.log
	if err := r.daemon.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for {
		err := r.answers(ctx, pods)
		if err == nil {
			return nil
		}
		if r.conn != nil {
			r.conn.Close()
			r.conn = nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w", err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// answers makes a connection, and asks.
func (r *runtime) answers(ctx context.Context, pods int) error {
	var err error
	r.conn, err = grpc.NewClient("unix://"+r.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	r.pods = cri.NewRuntimeServiceClient(r.conn)
	list, err := r.pods.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	if len(list.Items) != pods {
		return fmt.Errorf("%d pods are listed, not %d", len(list.Items), pods)
	}
	if pods > 0 {
		return nil
	}
	status, err := r.pods.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.Status.Conditions {
		if !c.Status && (c.Type == cri.RuntimeReady || c.Type == cri.NetworkReady) {
			return fmt.Errorf("%s is false: %s", c.Type, c.Message)
		}
	}
	return nil
}

// kill is kill -9 of the daemon, and returns when it is gone. What it has started lives on.
func (r *runtime) kill() error {
	if err := r.daemon.Process.Kill(); err != nil {
		return err
	}
	_ = r.daemon.Wait() // it says "killed"
	return nil
}

// end ends the daemon. All else ends with the namespace of processes.
func (r *runtime) end() {
	if r.daemon != nil && r.daemon.ProcessState == nil {
		if err := r.daemon.Process.Signal(syscall.SIGTERM); err == nil {
			timer := time.AfterFunc(10*time.Second, func() { _ = r.daemon.Process.Kill() })
			defer timer.Stop()
			_ = r.daemon.Wait()
		}
	}
	r.log.Close()
}

// explain adds the end of the daemon's log to an error.
func (r *runtime) explain(err error) error {
	text, readErr := os.ReadFile(r.log.Name())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-15):]
	return errors.Join(fmt.Errorf("%s: %w\n--- the end of its log:\n%s", r.name, err, strings.Join(lines, "\n")), readErr)
}
