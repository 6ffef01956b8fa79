package crictl

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

var (
	critestParallel = flag.Int("critest.parallel", 4, "how many specs critest runs beside each other")
	critestSeed     = flag.Int("critest.seed", 0, "the order of the specs, as an earlier run has told it; 0 = another one each time")
	critestFocus    = flag.String("critest.focus", "", "run only specs whose name matches this regular expression")
	critestWeb      = flag.Bool("critest.websocket", false, "critest streams over WebSocket, not SPDY")
)

// critestLeast is less than the number of specs that a host without any special ability runs.
const critestLeast = 106

// TestCritest is the validation suite of the CRI, in random order. A spec may be left out only because this host lacks
// what it needs, which is looked for here, not asked of cribox.
func TestCritest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs) // one spec ends a pull after a millisecond
	segments := sharedMemory(t)
	t.Cleanup(func() { removeSharedMemory(t, segments) })
	d.Must(d.Registry().WriteCertsD(d.RegistryConfig(), fixture.CritestHosts...))

	leftOut := imageByDigest(d)
	seed := *critestSeed
	if seed == 0 {
		seed = 1 + rand.IntN(1<<31-1)
	}
	needs := needs(d, leftOut)
	specs := critest(d, seed, leftOut)
	rememberLogged(d)
	ran := 0
	for _, s := range specs {
		if s.isValidation() {
			ran += s.check(t, needs)
		}
	}
	t.Logf("%d specs of critest have run; -critest.seed %d repeats the order", ran, seed)
	least := critestLeast
	if *critestFocus != "" {
		least = 1
	}
	if ran < least {
		t.Errorf("only %d specs of critest have run; want at least %d", ran, least)
	}
	if !t.Failed() {
		wantNoPods(d)
	}
}

// critest runs the suite against the daemon and returns what its report says.
func critest(d *harness.Daemon, seed int, leftOut *missing) []specReport {
	d.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	temp, report := filepath.Join(d.Dir, "critest"), filepath.Join(d.Dir, "critest.json")
	d.Must(os.Mkdir(temp, 0o755))
	args := []string{
		"-config", filepath.Join(d.Dir, "crictl.yaml"), "-runtime-endpoint", "unix://" + d.Socket,
		"-ginkgo.no-color", "-ginkgo.json-report", report, fmt.Sprint("-ginkgo.seed=", seed),
	}
	if *critestParallel > 1 {
		args = append(args, fmt.Sprint("-parallel=", *critestParallel))
	}
	if *critestFocus != "" {
		args = append(args, "-ginkgo.focus", *critestFocus)
	}
	if *critestWeb {
		args = append(args, "-websocket-exec", "-websocket-attach", "-websocket-portforward")
	}
	if leftOut != nil {
		args = append(args, "-ginkgo.skip", leftOut.spec)
	}
	cmd := exec.CommandContext(ctx, harness.Binary("critest"), args...)
	cmd.Dir = temp
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "PATH="+harness.BinFolder+":"+os.Getenv("PATH")) // it starts ginkgo
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	d.Must(os.WriteFile(filepath.Join(d.Dir, "crictl.yaml"), nil, 0o600))
	out, err := cmd.CombinedOutput()
	specs, readErr := readSpecs(report)
	if readErr != nil {
		d.Fatalf("critest: %v, and no report of it: %v\n%s", err, readErr, out)
	}
	if err != nil && !slices.ContainsFunc(specs, specReport.hasFailed) {
		d.Fatalf("critest: %v\n%s", err, out)
	}
	return specs
}

// specReport is what ginkgo's JSON report says of one spec, as far as we read it.
type specReport struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
	CapturedGinkgoWriterOutput string
}

func readSpecs(file string) ([]specReport, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var suites []struct{ SpecReports []specReport }
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, err
	}
	var out []specReport
	for _, s := range suites {
		out = append(out, s.SpecReports...)
	}
	return out, nil
}

func (s specReport) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

func (s specReport) hasFailed() bool { return s.State != "passed" && s.State != "skipped" }

// isValidation leaves out benchmarks, which are in the same binary, set-up that went well, and what is out of focus.
func (s specReport) isValidation() bool {
	if s.LeafNodeType != "It" {
		return s.hasFailed()
	}
	inFocus, err := regexp.MatchString(*critestFocus, s.name())
	return err != nil || inFocus && !strings.Contains(s.name(), "benchmark")
}

// check makes a test of the spec and returns 1 when it has run.
func (s specReport) check(t *testing.T, needs []missing) (ran int) {
	t.Run(s.name(), func(t *testing.T) {
		switch s.State {
		case "passed":
			ran = 1
		case "skipped":
			lacks := hostLacks(needs, s.name())
			if lacks == "" {
				t.Fatalf("was left out, but this host has what it needs: %s", s.Failure.Message)
			}
			t.Skip(lacks)
		default:
			ran = 1
			t.Errorf("%s after %s at %s:%d: %s\n%s", s.State, s.RunTime.Round(time.Millisecond), filepath.Base(s.Failure.Location.FileName),
				s.Failure.Location.LineNumber, s.Failure.Message, s.CapturedGinkgoWriterOutput)
		}
	})
	return ran
}

// missing is something that a host may lack, and the specs that cannot do without.
type missing struct {
	spec  string // regular expression of the name
	lacks func() string
}

// needs are what specs need of a host. Idmapped mounts are asked of the daemon's folder and, where critest asks too, of the
// one that it takes for the runtime's.
func needs(d *harness.Daemon, leftOut *missing) []missing {
	needs := []missing{
		{`^\[k8s\.io\] AppArmor `, harness.LacksAppArmor},
		{` UserNamespaces .* NamespaceMode_POD$`, func() string { return lacksIDMappedMounts("/var/lib") }},
		{` UserNamespaces `, func() string { return lacksIDMappedMounts(d.Root) }},
		{` recursive readonly mount`, lacksMountSetattr},
		{`^\[k8s\.io\] NRI `, func() string { return lacksNRI(d) }},
	}
	if leftOut != nil {
		needs = append(needs, *leftOut)
	}
	return needs
}

// hostLacks tells what a spec needs and this host has not; "" when it has everything.
func hostLacks(needs []missing, name string) string {
	for _, n := range needs {
		if !regexp.MustCompile(n.spec).MatchString(name) {
			continue
		}
		if lack := n.lacks(); lack != "" {
			return lack
		}
	}
	return ""
}

// lacksNRI looks for the socket that plugins of the Node Resource Interface connect to. It is a
// probe of the daemon, not of the host: once cribox has NRI, these specs have to run.
func lacksNRI(d *harness.Daemon) string {
	if _, err := os.Stat(filepath.Join(d.State, "nri.sock")); err == nil {
		return ""
	}
	return "cribox has no NRI socket in its state folder yet"
}

func lacksMountSetattr() string {
	if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); err == unix.ENOSYS {
		return "this kernel has no mount_setattr(2)"
	}
	return ""
}

// lacksIDMappedMounts tries one of the folder.
func lacksIDMappedMounts(folder string) string {
	tree, err := unix.OpenTree(-1, folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "this kernel cannot clone a mount: " + err.Error()
	}
	defer unix.Close(tree)
	cmd := exec.Command("sleep", "60")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65536, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		return "this host has no user namespaces: " + err.Error()
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		return "this kernel has no user namespaces: " + err.Error()
	}
	defer namespace.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(namespace.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return "the filesystem of " + folder + " cannot map ids: " + err.Error()
	}
	return ""
}

// imageByDigest takes care of the image that only its own registry has: where that one answers, what the fixture does not
// have is pulled from there; where it does not, the spec that wants it is left out.
func imageByDigest(d *harness.Daemon) *missing {
	d.Helper()
	host, rest, _ := strings.Cut(fixture.CritestByDigest, "/")
	repo, digest, _ := strings.Cut(rest, "@")
	if err := answersOK("https://" + host + "/v2/" + repo + "/manifests/" + digest); err != nil {
		reason := fmt.Sprintf("%s does not give %s: %v", host, digest, err)
		return &missing{"public image with digest should be pulled", func() string { return reason }}
	}
	d.Must(os.WriteFile(filepath.Join(d.RegistryConfig(), host, "hosts.toml"), fmt.Appendf(nil,
		"server = \"https://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", host, d.Registry().Addr), 0o644))
	return nil
}

func answersOK(url string) error {
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return harness.Unless(answer.StatusCode == http.StatusOK, "%s", answer.Status)
}

func wantNoPods(d *harness.Daemon) {
	d.Helper()
	r, err := d.Runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	d.Must(err)
	for _, p := range r.Items {
		d.Errorf("every spec has passed, and left the pod %s", p.Metadata.Name)
	}
}

// rememberLogged marks the pods and containers that others have made: the daemon's log names every one.
func rememberLogged(d *harness.Daemon) {
	d.Helper()
	log, err := os.ReadFile(d.LogFile())
	d.Must(err)
	for _, m := range regexp.MustCompile(`\b(?:pod|container)=([0-9a-f]{64})\b`).FindAllStringSubmatch(string(log), -1) {
		d.Marks.Add(m[1])
	}
}

// sharedMemory lists this host's System V segments; critest makes some and leaves them.
func sharedMemory(t testing.TB) map[string]bool {
	data, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 6 && f[3] == "1048576" && f[6] == "0" { // its size, and nobody is attached
			out[f[1]] = true
		}
	}
	return out
}

func removeSharedMemory(t testing.TB, kept map[string]bool) {
	for id := range sharedMemory(t) {
		if kept[id] {
			continue
		}
		if out, err := exec.Command("ipcrm", "-m", id).CombinedOutput(); err != nil {
			t.Errorf("remove the shared memory of critest: %v\n%s", err, out)
		}
	}
}
