package monitoring

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// watched is a daemon with metrics.
type watched struct {
	*harness.Daemon
	client *http.Client
}

// newWatched starts a daemon whose metrics are at a Unix socket.
func newWatched(t testing.TB) watched {
	t.Helper()
	dir := harness.ShortFolder(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "metrics.sock")
	d := harness.NewDaemon(t, harness.WithConfig(fmt.Sprintf("\n[metrics]\nlisten = \"unix://%s\"\n", socket)))
	return watched{d, &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}}
}

// scrape returns the series of a page and their values.
func (w watched) scrape(path string) map[string]float64 {
	w.Helper()
	resp, err := w.client.Get("http://daemon" + path)
	w.Must(err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	w.Must(err)
	if resp.StatusCode != http.StatusOK {
		w.Fatalf("%s: %s: %s", path, resp.Status, page)
	}
	series := map[string]float64{}
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndexByte(line, ' '); i > 0 && !strings.HasPrefix(line, "#") {
			n, err := strconv.ParseFloat(line[i+1:], 64)
			if _, twice := series[line[:i]]; err != nil || twice {
				w.Errorf("%s has a bad line, or a series twice: %s", path, line)
			}
			series[line[:i]] = n
		}
	}
	return series
}

// want tests series whose value is known.
func want(t testing.TB, series, values map[string]float64) {
	t.Helper()
	for name, n := range values {
		if got, ok := series[name]; !ok || got != n {
			t.Errorf("%s is %v (there: %t), want %v", name, got, ok, n)
		}
	}
}

// wantSome tests that series are there and not 0.
func wantSome(t testing.TB, series map[string]float64, names ...string) {
	t.Helper()
	for _, name := range names {
		if series[name] <= 0 {
			t.Errorf("%s is %v, want more than 0", name, series[name])
		}
	}
}

func TestMetricsOfTheDaemon(t *testing.T) {
	t.Parallel()
	d := newWatched(t)
	d.Pulled(harness.Busybox)
	if _, err := d.TryPull(d.Ref("not-there"), nil); err == nil {
		t.Fatal("pulled an image that is not there")
	}
	p := d.RunPod()
	c := p.Run(harness.Idle())
	series := d.scrape("/metrics")
	want(t, series, map[string]float64{
		`cribox_requests_total{code="OK",method="RunPodSandbox"}`:    1,
		`cribox_requests_total{code="OK",method="StartContainer"}`:   1,
		`cribox_request_duration_seconds_count{method="PullImage"}`:  2,
		`cribox_pulls_total{result="ok"}`:                            1,
		`cribox_pulls_total{result="not_found"}`:                     1,
		`cribox_step_duration_seconds_count{step="cni.setup"}`:       1,
		`cribox_step_duration_seconds_count{step="container.mount"}`: 1,
		`cribox_step_duration_seconds_count{step="shim.start"}`:      2,
		`cribox_step_duration_seconds_count{step="runtime.run"}`:     2,
		`cribox_step_duration_seconds_count{step="image.pull"}`:      2,
		`cribox_helper_starts_total{process="shim"}`:                 1,
		`cribox_helper_starts_total{process="logger"}`:               1,
		`cribox_pods{state="ready"}`:                                 1,
		`cribox_containers{state="running"}`:                         1,
		`cribox_network_debts`:                                       0,
	})
	wantSome(t, series, `cribox_pull_bytes_total{source="registry"}`)
	for _, process := range []string{"daemon", "shim", "logger"} {
		wantSome(t, series, `cribox_process_goroutines{process="`+process+`"}`,
			`cribox_process_resident_memory_bytes{process="`+process+`"}`)
	}

	c.Stop(0)
	p.Stop()
	d.KillRole("shim")
	harness.Eventually(t, "another shim to be counted", func() error {
		n := d.scrape("/metrics")[`cribox_helper_starts_total{process="shim"}`]
		return harness.Unless(n == 2, "%v", n)
	})
	series = d.scrape("/metrics")
	wantSome(t, series, `cribox_container_signals_total{signal="SIGKILL"}`)
	want(t, series, map[string]float64{
		`cribox_container_exits_total{reason="Error"}`:             1,
		`cribox_pods{state="notready"}`:                            1,
		`cribox_containers{state="exited"}`:                        1,
		`cribox_step_duration_seconds_count{step="cni.teardown"}`:  1,
		`cribox_network_debts`:                                     0,
		`cribox_requests_total{code="OK",method="StopPodSandbox"}`: 1,
	})
}

func TestMetricsOfContainers(t *testing.T) {
	t.Parallel()
	d := newWatched(t)
	p := d.RunPod()
	c := p.Run(harness.Idle())
	labels := fmt.Sprintf(`id="%s",image="%s",namespace="tests",pod="%s",container="%s"`, c.ID, d.Ref(harness.Busybox),
		p.Config.Metadata.Name, c.Config.Metadata.Name)
	series := d.scrape("/metrics/cadvisor")
	wantSome(t, series, "container_memory_usage_bytes{"+labels+"}", "container_start_time_seconds{"+labels+"}",
		"container_processes{"+labels+"}", `container_cpu_usage_seconds_total{`+labels+`,cpu="total"}`,
		fmt.Sprintf(`container_network_receive_bytes_total{id="%s",image="",namespace="tests",pod="%s",`+
			`container="",interface="eth0"}`, p.ID, p.Config.Metadata.Name))
	if whole := series[`container_cpu_usage_seconds_total{`+labels+`,cpu="total"}`]; whole == float64(int64(whole)) {
		t.Errorf("the processor time is %v: parts of a second are missing", whole)
	}
	for name := range d.scrape("/metrics") {
		if strings.HasPrefix(name, "container_") {
			t.Errorf("/metrics has %s, which is counted twice where the kubelet is scraped too", name)
		}
	}
}
