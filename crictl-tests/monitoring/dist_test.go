package monitoring

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// Files for operators, which name metrics.
const (
	rules     = "../../dist/prometheus-rules.yaml"
	dashboard = "../../dist/grafana-dashboard.json"
)

var metricName = regexp.MustCompile(`\b(cribox|container)_[a-z_]+`)

// TestDistNamesMetrics: the daemon serves every metric that the alerts, the dashboard and the page for
// operators name, and the page names every metric of the daemon.
func TestDistNamesMetrics(t *testing.T) {
	t.Parallel()
	d := newWatched(t)
	d.RunPod().Run(harness.Idle())
	served := map[string]bool{}
	for _, path := range []string{"/metrics", "/metrics/cadvisor"} {
		for series := range d.scrape(path) {
			name, _, _ := strings.Cut(series, "{")
			served[name] = true
		}
	}
	named := map[string][]string{}
	const page = "../../docs/monitoring.md"
	for _, file := range []string{rules, dashboard, page} {
		b, err := os.ReadFile(file)
		d.Must(err)
		named[file] = metricName.FindAllString(string(b), -1)
		if len(named[file]) < 9 {
			t.Errorf("%s names %d metrics only", file, len(named[file]))
		}
		for _, name := range named[file] {
			if !served[name] && !served[name+"_bucket"] {
				t.Errorf("%s names %s, which is not served", file, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(served)) {
		family := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			family = strings.TrimSuffix(family, suffix)
		}
		if strings.HasPrefix(name, "cribox_") && !slices.Contains(named[page], family) {
			t.Errorf("%s does not say what %s is", page, family)
		}
	}
}

// program returns the path of a program of Prometheus.
func program(t testing.TB, name string) string {
	t.Helper()
	path := harness.Binary(filepath.Join("prometheus", name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%v; hack/tools.sh takes it from Debian", err)
	}
	return path
}

func TestPrometheusRules(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(program(t, "promtool"), "check", "rules", rules).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// prometheus is Debian's, which reads both pages of a daemon.
type prometheus struct {
	*harness.Daemon
	at string // its address
}

// newPrometheus starts a daemon, and a Prometheus that asks it every second.
func newPrometheus(t *testing.T) *prometheus {
	t.Helper()
	binary := program(t, "prometheus")
	metrics, ui := freePort(t), freePort(t)
	p := &prometheus{harness.NewDaemon(t, harness.WithConfig(fmt.Sprintf("\n[metrics]\nlisten = %q\n", metrics))), ui}
	dir := t.TempDir()
	absolute, err := filepath.Abs(rules)
	p.Must(err)
	config := filepath.Join(dir, "prometheus.yml")
	p.Must(os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- {job_name: cribox, static_configs: [{targets: [%q]}]}
- {job_name: containers, metrics_path: /metrics/cadvisor, static_configs: [{targets: [%q]}]}
`, absolute, metrics, metrics), 0o600))
	cmd := exec.Command(binary, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+ui)
	log, err := os.Create(filepath.Join(dir, "log"))
	p.Must(err)
	t.Cleanup(func() { log.Close() })
	cmd.Stdout, cmd.Stderr = log, log
	p.Must(cmd.Start())
	running := harness.Watch(cmd)
	t.Cleanup(func() { running.Signal(syscall.SIGKILL); running.Wait(t) })
	return p
}

// TestPrometheusScrapes: Prometheus itself reads both pages, and evaluates the alerts.
func TestPrometheusScrapes(t *testing.T) {
	t.Parallel()
	d := newPrometheus(t)
	p := d.RunPod()
	p.Run(harness.Idle())
	for _, query := range []string{
		`cribox_requests_total{job="cribox",method="RunPodSandbox",code="OK"} == 1`,
		`cribox_step_duration_seconds_count{step="cni.setup"} == 1`,
		fmt.Sprintf(`container_memory_usage_bytes{job="containers",pod=%q} > 0`, p.Config.Metadata.Name),
	} {
		harness.Eventually(t, query, func() error { return answers(d.at, "query?query="+url.QueryEscape(query), `"metric":{`) })
	}
	harness.Eventually(t, "the alerts to be evaluated", func() error { return answers(d.at, "rules", `"health":"ok"`) })
	if err := answers(d.at, "rules", `"health":"err"`); err == nil {
		t.Error("Prometheus cannot evaluate an alert")
	}
}

// answers asks Prometheus, and complains unless the answer has the word.
func answers(at, call, word string) error {
	resp, err := http.Get("http://" + at + "/api/v1/" + call)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return harness.Unless(strings.Contains(string(b), word), "%s", b)
}

// freePort returns an address of the loopback that nobody listened at a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
