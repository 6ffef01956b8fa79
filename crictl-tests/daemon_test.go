package crictltests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// daemon is one cribox with folders, network and socket of its own, and clients of it.
type daemon struct {
	testing.TB
	settings
	dir    string // everything of this test: config, daemon log, container logs
	root   string
	state  string
	socket string

	process *process
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient

	pulledMu  sync.Mutex
	pulledIDs map[string]string // by fixture name

	marks marks         // every id this daemon has told us
	empty ledger.Ledger // what there was before the first request
}

// settings is what a test may choose.
type settings struct {
	binary  string
	env     []string
	network string // the [network] section, without subnet
	subnet  string
	limits  string   // goes on in [images]
	config  string   // goes on in [runtimes.runc], where the configuration ends
	blobs   bool     // blobs and downloads may stay
	mayLeak bool     // the test leaves something on purpose
	cgroups []string // made in the kubelet's place
}

type option func(*settings)

func withEnv(env ...string) option { return func(s *settings) { s.env = append(s.env, env...) } }

// withOwnNetwork leaves the network to what the test writes into d.confDir().
func withOwnNetwork() option { return func(s *settings) { s.network = "default = false" } }

// withImages adds to the table [images].
func withImages(text string) option { return func(s *settings) { s.limits += text } }

// withConfig adds to the configuration, whose end is the table [runtimes.runc].
func withConfig(text string) option { return func(s *settings) { s.config += text } }

// keepsBlobs is for tests in which a pull fails or is left: what it has verified stays for the next one.
func keepsBlobs(s *settings) { s.blobs = true }

// newDaemon starts a cribox and takes care of its end: no pod, no process, nothing of it is left, or the test fails.
func newDaemon(t testing.TB, options ...option) *daemon {
	t.Helper()
	d := prepareDaemon(t, options...)
	d.start()
	d.empty = d.ledger()
	return d
}

// prepareDaemon makes the folders and the configuration only.
func prepareDaemon(t testing.TB, options ...option) *daemon {
	t.Helper()
	dir := shortFolder(t)
	d := &daemon{
		TB: t, dir: dir, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "run"),
		socket:   filepath.Join(dir, "cribox.sock"),
		settings: settings{binary: cribox, network: "default = true", subnet: freeSubnet(t)},
	}
	for _, o := range options {
		o(&d.settings)
	}
	for _, folder := range []string{d.confDir(), d.registryConfig(), d.logs()} {
		d.must(os.MkdirAll(folder, 0o755))
	}
	d.must(os.WriteFile(d.configFile(), []byte(d.configuration()), 0o600))
	d.dial()
	t.Cleanup(d.end)
	return d
}

// shortFolder makes a new folder. A socket's path has 108 bytes, of which the name below the state folder needs most.
func shortFolder(t testing.TB) string {
	t.Helper()
	for {
		dir := fmt.Sprintf("/tmp/cbx-%05x", rand.IntN(1<<20))
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			return dir
		}
		if !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
}

func (d *daemon) confDir() string        { return filepath.Join(d.dir, "net.d") }
func (d *daemon) registryConfig() string { return filepath.Join(d.dir, "certs.d") }
func (d *daemon) configFile() string     { return filepath.Join(d.dir, "config.toml") }
func (d *daemon) logFile() string        { return filepath.Join(d.dir, "daemon.log") }
func (d *daemon) logs() string           { return filepath.Join(d.dir, "logs") }
func (d *daemon) instance() string       { return ledger.Instance(d.state) }

func (d *daemon) configuration() string {
	return fmt.Sprintf(`listen = "unix://%s"
root = %q
state = %q
log_level = "debug"
default_runtime = "runc"
cdi_spec_dirs = [%q, %q]

[images]
registry_config = %q
%s

[network]
conf_dir = %q
bin_dirs = [%q]
subnet = %q
%s

[runtimes.runc]
path = %q
%s`, d.socket, d.root, d.state, d.cdiDirs()[0], d.cdiDirs()[1], d.registryConfig(), d.limits, d.confDir(), binary("cni"), d.subnet, d.network, binary("runc"), d.config)
}

func (d *daemon) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *daemon) dial() {
	conn, err := grpc.NewClient("unix://"+d.socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		// A daemon that was killed is back in moments; do not wait for it in growing steps.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithUnaryInterceptor(d.marks.remember))
	d.must(err)
	d.conn, d.runtime, d.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
}

// start starts the daemon and returns when it answers.
func (d *daemon) start() {
	d.Helper()
	d.launch()
	d.waitReady()
}

func (d *daemon) launch() {
	d.Helper()
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	d.must(err)
	defer log.Close()
	cmd := command(d.binary, "serve", "--config", d.configFile())
	cmd.Env = append(os.Environ(), d.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.must(cmd.Start())
	d.process = watch(cmd)
}

func (d *daemon) waitReady() {
	d.Helper()
	if !d.answers() {
		d.Fatalf("cribox serve ended before it answered: %v", d.process.ended())
	}
}

// answers waits for the socket to answer; false when the daemon ended instead.
func (d *daemon) answers() bool {
	d.Helper()
	eventually(d, "the socket to answer", func() error {
		if d.process.ended() != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := d.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
		if err != nil {
			d.conn.ResetConnectBackoff()
		}
		return err
	})
	return d.process.ended() == nil
}

// kill is kill -9, and returns when the process is gone. Shim, logger and containers stay.
func (d *daemon) kill() {
	d.Helper()
	d.process.signal(syscall.SIGKILL)
	d.process.wait(d)
}

// stop ends the daemon politely.
func (d *daemon) stop() {
	d.Helper()
	d.process.signal(syscall.SIGTERM)
	d.process.wait(d)
}

func (d *daemon) restart() {
	d.Helper()
	d.kill()
	d.start()
}

// heal starts the daemon without the switch that killed it.
func (d *daemon) heal() {
	d.Helper()
	d.process.wait(d)
	kept := d.env[:0]
	for _, e := range d.env {
		if !strings.HasPrefix(e, "CRIBOX_STEP_KILL=") {
			kept = append(kept, e)
		}
	}
	d.env = kept
	d.start()
}

// ledger counts what there is when nothing is about to become something else: runc says that a container runs a moment before its init is the program.
func (d *daemon) ledger() (l ledger.Ledger) {
	d.Helper()
	_ = within(ledgerPatience, func() error {
		l = d.ledgerNow()
		return unless(!slices.Contains(l[ledger.Processes], "runc init"), "a container is about to begin")
	})
	return l
}

// ledgerNow counts what there is now.
func (d *daemon) ledgerNow() ledger.Ledger {
	d.Helper()
	l, err := ledger.Take(d.scope())
	d.must(err)
	return l
}

func (d *daemon) scope() ledger.Scope {
	s := ledger.Scope{Root: d.root, State: d.state, Marks: append(d.marks.list(), d.dir)}
	if d.process != nil && d.process.ended() == nil {
		s.Daemon = d.process.pid()
	}
	return s
}

// wantFlat waits until the ledger is what it was.
func (d *daemon) wantFlat(before ledger.Ledger) {
	d.Helper()
	var diff string
	err := within(ledgerPatience, func() error {
		diff = d.diff(before, d.ledgerNow())
		return unless(diff == "", "not flat")
	})
	if err != nil {
		d.Errorf("something was left, or lost (+ left, - lost):\n%s", diff)
	}
}

// diff is what matters between two ledgers of a running daemon.
func (d *daemon) diff(before, after ledger.Ledger) string {
	before, after = d.settled(before), d.settled(after)
	before[ledger.Fds] = common(before[ledger.Fds], after[ledger.Fds]) // fewer descriptors are fine
	return ledger.Diff(before, after)
}

// end removes everything, asks for the ledger, and leaves nothing whatever happened.
func (d *daemon) end() {
	if d.process != nil && d.process.ended() != nil && d.empty != nil {
		d.heal()
	}
	if d.process != nil && d.process.ended() == nil && d.empty != nil {
		d.removeAll()
		if !d.mayLeak {
			d.wantFlat(d.empty)
		}
	}
	d.shutdown()
	d.removeOwnNetwork()
	if !d.mayLeak {
		d.wantNothing()
	}
	d.conn.Close()
	if d.Failed() {
		d.Logf("the daemon's last lines:\n%s", lastLines(d.logFile(), 100))
	}
	d.clear()
}

// shutdown stops daemon, shim and logger.
func (d *daemon) shutdown() {
	d.Helper()
	if d.process == nil {
		return
	}
	if d.process.ended() == nil {
		d.stop()
	}
	if d.empty == nil {
		return
	}
	if out, err := command(cribox, "shutdown", "--config", d.configFile(), "--state", d.state).CombinedOutput(); err != nil {
		d.Errorf("cribox shutdown: %v\n%s", err, out)
	}
}

// wantNothing waits until the host holds nothing of this daemon but its files.
func (d *daemon) wantNothing() {
	d.Helper()
	var diff string
	err := within(ledgerPatience, func() error {
		diff = ledger.Diff(ledger.Ledger{}, d.ledger().Without(ledger.Files))
		return unless(diff == "", "not empty")
	})
	if err != nil {
		d.Errorf("left on the host after shutdown:\n%s", diff)
	}
}

// removeAll is a kubelet that drains its node.
func (d *daemon) removeAll() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pods, err := d.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		d.Errorf("list pods at the end: %v", err)
		return
	}
	for _, p := range pods.Items {
		if _, err := d.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			d.Errorf("stop pod at the end: %v", err)
		}
		if _, err := d.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			d.Errorf("remove pod at the end: %v", err)
		}
	}
	images, err := d.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		d.Errorf("list images at the end: %v", err)
		return
	}
	for _, i := range images.Images {
		if i.Pinned {
			continue
		}
		if _, err := d.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.Id}}); err != nil {
			d.Errorf("remove image at the end: %v", err)
		}
	}
}

// clear is the broom for a host after a failed test; after a good one it finds only files.
func (d *daemon) clear() {
	for range 3 {
		left, err := ledger.Belonging(d.scope())
		if err != nil || len(left) == 0 {
			break
		}
		for _, p := range left {
			if p.State != 'Z' {
				_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			}
		}
		_ = within(5*time.Second, func() error {
			now, err := ledger.Belonging(d.scope())
			return errors.Join(err, unless(len(now) == 0, "processes left"))
		})
	}
	sweepHost(d)
	for _, path := range d.cgroups {
		if err := os.Remove(path); err != nil {
			d.Errorf("remove the kubelet's cgroup: %v", err)
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.Errorf("remove the test's folder: %v", err)
	}
}

// role returns the pid of this daemon's shim or logger, 0 when there is none.
func (d *daemon) role(role string) int {
	d.Helper()
	ours, err := ledger.Belonging(d.scope())
	d.must(err)
	for _, p := range ours {
		if ledger.Role(p) == role {
			return p.Pid
		}
	}
	return 0
}

func (d *daemon) waitRole(role string, not int) int {
	d.Helper()
	var pid int
	eventually(d, "a "+role, func() error {
		pid = d.role(role)
		return unless(pid != 0 && pid != not, "there is none, or it is the old one (%d)", pid)
	})
	return pid
}

// killRole is kill -9 of this daemon's shim or logger, and returns when it is gone.
func (d *daemon) killRole(role string) {
	d.Helper()
	d.endRole(role, syscall.SIGKILL)
}

// endRole ends this daemon's shim or logger by a signal, and returns when it is gone.
func (d *daemon) endRole(role string, by syscall.Signal) {
	d.Helper()
	pid := d.waitRole(role, 0)
	d.must(syscall.Kill(pid, by))
	eventually(d, role+" to be gone", func() error {
		p, err := ledger.Look(pid)
		return unless(err != nil || p.State == 'Z', "process %d is still there", pid)
	})
}

// processesOf returns the processes in the cgroup of a pod or container: what the host knows of it.
func (d *daemon) processesOf(id string) []ledger.Process {
	d.Helper()
	all, err := ledger.List()
	d.must(err)
	var out []ledger.Process
	for _, p := range all {
		if strings.Contains(p.Cgroup, id) {
			out = append(out, p)
		}
	}
	return out
}

// process is a child whose end is known to everybody who asks.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func watch(cmd *exec.Cmd) *process {
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		if p.err = cmd.Wait(); p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.done)
	}()
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// ended is nil while the process runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

func (p *process) wait(t testing.TB) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("process %d did not end within %s", p.pid(), patience)
	}
}

// marks remembers every id that the daemon has ever answered, so that the ledger finds what carries it.
type marks struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (m *marks) remember(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
	}
	err := call(ctx, method, request, reply, conn, options...)
	switch r := reply.(type) {
	case *cri.RunPodSandboxResponse:
		m.add(r.PodSandboxId)
	case *cri.CreateContainerResponse:
		m.add(r.ContainerId)
	case *cri.ListPodSandboxResponse:
		for _, p := range r.Items {
			m.add(p.Id)
		}
	case *cri.ListContainersResponse:
		for _, c := range r.Containers {
			m.add(c.Id)
		}
	}
	return err
}

func (m *marks) add(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	if id != "" {
		m.ids[id] = true
	}
}

func (m *marks) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id := range m.ids {
		out = append(out, id)
	}
	return out
}

func lastLines(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// wantCode fails unless the error has the code and its message every one of the words.
func wantCode(t testing.TB, err error, code codes.Code, words ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("got code %s, want %s; error: %v", got, code, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(status.Convert(err).Message(), w) {
			t.Errorf("the message should name %q: %v", w, err)
		}
	}
}
