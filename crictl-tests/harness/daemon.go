package harness

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

// Daemon is one cribox with folders, network and socket of its own, and clients of it.
type Daemon struct {
	testing.TB
	Settings
	Dir    string // everything of this test: config, daemon log, container logs
	Root   string
	State  string
	Socket string

	Process *Process
	Conn    *grpc.ClientConn
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	pulledMu  sync.Mutex
	pulledIDs map[string]string // by fixture name

	Marks marks         // every id this daemon has told us
	Empty ledger.Ledger // what there was before the first request
}

// Settings is what a test may choose.
type Settings struct {
	Binary  string
	Env     []string
	network string // the [network] section, without subnet
	Subnet  string
	limits  string   // goes on in [images]
	top     string   // goes before the tables
	config  string   // goes on in [runtimes.runc], where the configuration ends
	blobs   bool     // blobs and downloads may stay
	MayLeak bool     // the test leaves something on purpose
	Cgroups []string // made in the kubelet's place
}

// Option chooses something of a daemon before it starts.
type Option func(*Settings)

// WithEnv adds to the environment of the daemon.
func WithEnv(env ...string) Option { return func(s *Settings) { s.Env = append(s.Env, env...) } }

// WithOwnNetwork leaves the network to what the test writes into d.ConfDir().
func WithOwnNetwork() Option { return func(s *Settings) { s.network = "default = false" } }

// WithImages adds to the table [images].
func WithImages(text string) Option { return func(s *Settings) { s.limits += text } }

// WithConfig adds to the configuration, whose end is the table [runtimes.runc].
func WithConfig(text string) Option { return func(s *Settings) { s.config += text } }

// WithTop adds to the keys before the tables.
func WithTop(text string) Option { return func(s *Settings) { s.top += text + "\n" } }

// KeepsBlobs is for tests in which a pull fails or is left: what it has verified stays for the next
// one.
func KeepsBlobs(s *Settings) { s.blobs = true }

// NewDaemon starts a cribox and takes care of its end: no pod, no process, nothing of it is left,
// or the test fails.
func NewDaemon(t testing.TB, options ...Option) *Daemon {
	t.Helper()
	d := PrepareDaemon(t, options...)
	d.Start()
	d.Empty = d.Ledger()
	return d
}

// PrepareDaemon makes the folders and the configuration only.
func PrepareDaemon(t testing.TB, options ...Option) *Daemon {
	t.Helper()
	dir := ShortFolder(t)
	d := &Daemon{
		TB: t, Dir: dir, Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "run"),
		Socket:   filepath.Join(dir, "cribox.sock"),
		Settings: Settings{Binary: Cribox, network: "default = true", Subnet: freeSubnet(t)},
	}
	for _, o := range options {
		o(&d.Settings)
	}
	for _, folder := range []string{d.ConfDir(), d.RegistryConfig(), d.Logs()} {
		d.Must(os.MkdirAll(folder, 0o755))
	}
	d.Must(os.WriteFile(d.ConfigFile(), []byte(d.Configuration()), 0o600))
	d.dial()
	t.Cleanup(d.end)
	return d
}

// ShortFolder makes a new folder. A socket's path has 108 bytes, of which the name below the state
// folder needs most.
func ShortFolder(t testing.TB) string {
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

// ConfDir is the folder of the network configurations.
func (d *Daemon) ConfDir() string { return filepath.Join(d.Dir, "net.d") }

// RegistryConfig is the folder of the registries' hosts.toml files.
func (d *Daemon) RegistryConfig() string { return filepath.Join(d.Dir, "certs.d") }

// ConfigFile is the configuration of the daemon.
func (d *Daemon) ConfigFile() string { return filepath.Join(d.Dir, "config.toml") }

// LogFile is what the daemon prints.
func (d *Daemon) LogFile() string { return filepath.Join(d.Dir, "daemon.log") }

// Logs is the folder of the container logs.
func (d *Daemon) Logs() string { return filepath.Join(d.Dir, "logs") }

// Instance is the part of names on the host that tells this daemon from others.
func (d *Daemon) Instance() string { return ledger.Instance(d.State) }

// Configuration is the text of the configuration file.
func (d *Daemon) Configuration() string {
	return fmt.Sprintf(`listen = "unix://%s"
root = %q
state = %q
log_level = "debug"
default_runtime = "runc"
cdi_spec_dirs = [%q, %q]
%s
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
%s`, d.Socket, d.Root, d.State, d.CDIDirs()[0], d.CDIDirs()[1], d.top, d.RegistryConfig(), d.limits, d.ConfDir(), Binary("cni"), d.Subnet, d.network, Binary("runc"), d.config)
}

// Must ends the test when there is an error.
func (d *Daemon) Must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *Daemon) dial() {
	conn, err := grpc.NewClient("unix://"+d.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		// A daemon that was killed is back in moments; do not wait for it in growing steps.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithUnaryInterceptor(d.Marks.remember))
	d.Must(err)
	d.Conn, d.Runtime, d.Images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
}

// Start starts the daemon and returns when it answers.
func (d *Daemon) Start() {
	d.Helper()
	d.Launch()
	d.WaitReady()
}

// Launch starts the daemon and does not wait until it answers.
func (d *Daemon) Launch() {
	d.Helper()
	log, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	d.Must(err)
	defer log.Close()
	cmd := Command(d.Binary, "serve", "--config", d.ConfigFile())
	cmd.Env = append(os.Environ(), d.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.Must(cmd.Start())
	d.Process = Watch(cmd)
}

// WaitReady waits until the daemon answers, and ends the test when it exits instead.
func (d *Daemon) WaitReady() {
	d.Helper()
	if !d.Answers() {
		d.Fatalf("cribox serve ended before it answered: %v", d.Process.Ended())
	}
}

// Answers waits for the socket to answer; false when the daemon ended instead.
func (d *Daemon) Answers() bool {
	d.Helper()
	Eventually(d, "the socket to answer", func() error {
		if d.Process.Ended() != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
		if err != nil {
			d.Conn.ResetConnectBackoff()
		}
		return err
	})
	return d.Process.Ended() == nil
}

// Kill is kill -9, and returns when the process is gone. Shim, logger and containers stay.
func (d *Daemon) Kill() {
	d.Helper()
	d.Process.Signal(syscall.SIGKILL)
	d.Process.Wait(d)
}

// Stop ends the daemon politely.
func (d *Daemon) Stop() {
	d.Helper()
	d.Process.Signal(syscall.SIGTERM)
	d.Process.Wait(d)
}

// Restart kills the daemon and starts it again.
func (d *Daemon) Restart() {
	d.Helper()
	d.Kill()
	d.Start()
}

// Heal starts the daemon without the switch that killed it.
func (d *Daemon) Heal() {
	d.Helper()
	d.Process.Wait(d)
	kept := d.Env[:0]
	for _, e := range d.Env {
		if !strings.HasPrefix(e, "CRIBOX_STEP_KILL=") {
			kept = append(kept, e)
		}
	}
	d.Env = kept
	d.Start()
}

// Ledger counts what there is when nothing is about to become something else: runc says that a
// container runs a moment before its init is the program, and a program that has ended is a zombie
// until it has been waited for.
func (d *Daemon) Ledger() (l ledger.Ledger) {
	d.Helper()
	_ = Within(ledgerPatience, func() error {
		l = d.ledgerNow()
		return Unless(!passing(l[ledger.Processes]), "a process is about to begin or to go")
	})
	return l
}

// passing reports whether there is a process that is about to go, or to execute another program: until then it looks like its parent, the
// shim.
func passing(processes []string) bool {
	if slices.Contains(processes, "runc init") || slices.Contains(processes, "zombie") {
		return true
	}
	seen := map[string]bool{}
	for _, p := range processes {
		if strings.Contains(p, " shim --state ") {
			if seen[p] {
				return true
			}
			seen[p] = true
		}
	}
	return false
}

// ledgerNow counts what there is now.
func (d *Daemon) ledgerNow() ledger.Ledger {
	d.Helper()
	l, err := ledger.Take(d.Scope())
	d.Must(err)
	return l
}

// Scope says what on the host belongs to this daemon.
func (d *Daemon) Scope() ledger.Scope {
	s := ledger.Scope{Root: d.Root, State: d.State, Marks: append(d.Marks.list(), d.Dir)}
	if d.Process != nil && d.Process.Ended() == nil {
		s.Daemon = d.Process.PID()
	}
	return s
}

// WantFlat waits until the ledger is what it was.
func (d *Daemon) WantFlat(before ledger.Ledger) {
	d.Helper()
	var diff string
	err := Within(ledgerPatience, func() error {
		diff = d.Diff(before, d.ledgerNow())
		return Unless(diff == "", "not flat")
	})
	if err != nil {
		d.Errorf("something was left, or lost (+ left, - lost):\n%s", diff)
	}
}

// Diff is what matters between two ledgers of a running daemon.
func (d *Daemon) Diff(before, after ledger.Ledger) string {
	before, after = d.settled(before), d.settled(after)
	before[ledger.Fds] = common(before[ledger.Fds], after[ledger.Fds]) // fewer descriptors are fine
	return ledger.Diff(before, after)
}

// end removes everything, asks for the ledger, and leaves nothing whatever happened.
func (d *Daemon) end() {
	if d.Process != nil && d.Process.Ended() != nil && d.Empty != nil {
		d.Heal()
	}
	if d.Process != nil && d.Process.Ended() == nil && d.Empty != nil {
		d.RemoveAll()
		if !d.MayLeak {
			d.WantFlat(d.Empty)
		}
	}
	d.Shutdown()
	d.removeOwnNetwork()
	if !d.MayLeak {
		d.wantNothing()
	}
	d.Conn.Close()
	if d.Failed() {
		d.Logf("the daemon's last lines:\n%s", LastLines(d.LogFile(), 100))
	}
	d.clear()
}

// Shutdown stops daemon, shim and logger.
func (d *Daemon) Shutdown() {
	d.Helper()
	if d.Process == nil {
		return
	}
	if d.Process.Ended() == nil {
		d.Stop()
	}
	if d.Empty == nil {
		return
	}
	if out, err := Command(Cribox, "shutdown", "--config", d.ConfigFile(), "--state", d.State).CombinedOutput(); err != nil {
		d.Errorf("cribox shutdown: %v\n%s", err, out)
	}
}

// wantNothing waits until the host holds nothing of this daemon but its files.
func (d *Daemon) wantNothing() {
	d.Helper()
	var diff string
	err := Within(ledgerPatience, func() error {
		diff = ledger.Diff(ledger.Ledger{}, d.Ledger().Without(ledger.Files))
		return Unless(diff == "", "not empty")
	})
	if err != nil {
		d.Errorf("left on the host after shutdown:\n%s", diff)
	}
}

// RemoveAll is a kubelet that drains its node.
func (d *Daemon) RemoveAll() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pods, err := d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		d.Errorf("list pods at the end: %v", err)
		return
	}
	for _, p := range pods.Items {
		if _, err := d.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			d.Errorf("stop pod at the end: %v", err)
		}
		if _, err := d.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			d.Errorf("remove pod at the end: %v", err)
		}
	}
	images, err := d.Images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		d.Errorf("list images at the end: %v", err)
		return
	}
	for _, i := range images.Images {
		if i.Pinned {
			continue
		}
		if _, err := d.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.Id}}); err != nil {
			d.Errorf("remove image at the end: %v", err)
		}
	}
}

// clear is the broom for a host after a failed test; after a good one it finds only files.
func (d *Daemon) clear() {
	for range 3 {
		left, err := ledger.Belonging(d.Scope())
		if err != nil || len(left) == 0 {
			break
		}
		for _, p := range left {
			if p.State != 'Z' {
				_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			}
		}
		_ = Within(5*time.Second, func() error {
			now, err := ledger.Belonging(d.Scope())
			return errors.Join(err, Unless(len(now) == 0, "processes left"))
		})
	}
	sweepHost(d)
	if err := d.removeCgroups(); err != nil {
		d.Errorf("remove the kubelet's cgroup: %v", err)
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		d.Errorf("remove the test's folder: %v", err)
	}
}

// Role returns the pid of this daemon's shim or logger, 0 when there is none.
func (d *Daemon) Role(role string) int {
	d.Helper()
	ours, err := ledger.Belonging(d.Scope())
	d.Must(err)
	for _, p := range ours {
		if ledger.Role(p) == role {
			return p.Pid
		}
	}
	return 0
}

// WaitRole waits for a shim or logger whose pid is not the given one, and returns its pid.
func (d *Daemon) WaitRole(role string, not int) int {
	d.Helper()
	var pid int
	Eventually(d, "a "+role, func() error {
		pid = d.Role(role)
		return Unless(pid != 0 && pid != not, "there is none, or it is the old one (%d)", pid)
	})
	return pid
}

// KillRole is kill -9 of this daemon's shim or logger, and returns when it is gone.
func (d *Daemon) KillRole(role string) {
	d.Helper()
	d.EndRole(role, syscall.SIGKILL)
}

// EndRole ends this daemon's shim or logger by a signal, and returns when it is gone.
func (d *Daemon) EndRole(role string, by syscall.Signal) {
	d.Helper()
	pid := d.WaitRole(role, 0)
	d.Must(syscall.Kill(pid, by))
	Eventually(d, role+" to be gone", func() error {
		p, err := ledger.Look(pid)
		return Unless(err != nil || p.State == 'Z', "process %d is still there", pid)
	})
}

// ProcessesOf returns the processes in the cgroup of a pod or container: what the host knows of it.
func (d *Daemon) ProcessesOf(id string) []ledger.Process {
	d.Helper()
	all, err := ledger.List()
	d.Must(err)
	var out []ledger.Process
	for _, p := range all {
		if strings.Contains(p.Cgroup, id) {
			out = append(out, p)
		}
	}
	return out
}

// Process is a child whose end is known to everybody who asks.
type Process struct {
	cmd  *exec.Cmd
	Done chan struct{}
	Err  error
}

// Watch waits for a started command in the background.
func Watch(cmd *exec.Cmd) *Process {
	p := &Process{cmd: cmd, Done: make(chan struct{})}
	go func() {
		if p.Err = cmd.Wait(); p.Err == nil {
			p.Err = errors.New("exit status 0")
		}
		close(p.Done)
	}()
	return p
}

// PID is the pid of the child.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal; a process that is gone does not get it.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Ended is nil while the process runs.
func (p *Process) Ended() error {
	select {
	case <-p.Done:
		return p.Err
	default:
		return nil
	}
}

// Wait ends the test when the process does not end soon.
func (p *Process) Wait(t testing.TB) {
	t.Helper()
	select {
	case <-p.Done:
	case <-time.After(Patience):
		t.Fatalf("process %d did not end within %s", p.PID(), Patience)
	}
}

// marks remembers every id that the daemon has ever answered, so that the ledger finds what carries
// it.
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
		m.Add(r.PodSandboxId)
	case *cri.CreateContainerResponse:
		m.Add(r.ContainerId)
	case *cri.ListPodSandboxResponse:
		for _, p := range r.Items {
			m.Add(p.Id)
		}
	case *cri.ListContainersResponse:
		for _, c := range r.Containers {
			m.Add(c.Id)
		}
	}
	return err
}

// Add adds an id that a test has learned in another way.
func (m *marks) Add(id string) {
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

// LastLines returns the last n lines of a file.
func LastLines(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// WantCode fails unless the error has the code and its message every one of the words.
func WantCode(t testing.TB, err error, code codes.Code, words ...string) {
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

// CDIDirs are the folders in which this daemon finds CDI files.
func (d *Daemon) CDIDirs() [2]string {
	return [2]string{filepath.Join(d.Dir, "cdi"), filepath.Join(d.Dir, "cdi-late")}
}

// SteppedDaemon is one whose steps can be held.
func SteppedDaemon(t *testing.T, options ...Option) (d *Daemon, log string) {
	log = filepath.Join(ShortFolder(t), "steps")
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(log)) })
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return NewDaemon(t, append(options, func(s *Settings) { s.Binary = Steps }, WithEnv("CRIBOX_STEP_LOG="+log))...), log
}

// Goroutines is how many goroutines the daemon has, 0 when it does not say.
func (d *Daemon) Goroutines() (n int) {
	d.Helper()
	r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.Must(err)
	for _, digit := range r.Info["goroutines"] {
		if digit < '0' || digit > '9' {
			return 0
		}
		n = n*10 + int(digit-'0')
	}
	return n
}

// WantGoroutines waits until there are hardly more goroutines than there were.
func (d *Daemon) WantGoroutines(before int) {
	d.Helper()
	Eventually(d, "goroutines to end", func() error {
		now := d.Goroutines()
		return Unless(now <= before+5, "%d of them, %d before", now, before)
	})
}
