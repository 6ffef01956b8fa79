package monitoring

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// panel is what the dashboard shows in one frame, as far as we read it.
type panel struct {
	Title       string
	Targets     []struct{ Expr, LegendFormat string }
	FieldConfig struct{ Defaults struct{ Unit string } }
}

func panels(t *testing.T) []panel {
	t.Helper()
	raw, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Panels []panel }
	if err := json.Unmarshal(raw, &file); err != nil || len(file.Panels) < 10 {
		t.Fatalf("%d panels, %v", len(file.Panels), err)
	}
	return file.Panels
}

const mostShown = 10 // of the answers to one question

// TestDashboard: Prometheus answers every question of the dashboard about a node where something happens. With -v it prints the page of
// docs/monitoring.md that shows the answers.
func TestDashboard(t *testing.T) {
	t.Parallel()
	d := newPrometheus(t)
	work := func() {
		p := d.RunPod()
		c := p.Run(harness.Idle())
		c.Exec("true")
		failing := p.Run(harness.Shell("exit 3"))
		failing.WaitExit()
		c.Stop(0)
		_, _ = d.TryPull("127.0.0.1:1/nothing:1", nil)
	}
	work()
	kept := d.RunPod()
	kept.Run(d.Tool("print", "-lines", harness.ManyLines, "-every", "1ms"))
	seen := func() error {
		return answers(d.at, "query?query="+url.QueryEscape(`cribox_requests_total{method="ExecSync"} >= 1`), `"metric":{`)
	}
	harness.Eventually(t, "the first work to be seen", seen)
	for range 8 { // a rate needs more than was there at first
		work()
	}
	var page strings.Builder
	for _, p := range panels(t) {
		unit := p.FieldConfig.Defaults.Unit
		var shown []string
		harness.Eventually(t, p.Title, func() error {
			shown = nil
			for _, target := range p.Targets {
				values, err := d.query(strings.ReplaceAll(target.Expr, "$instance", ".*"))
				if err != nil {
					return fmt.Errorf("%s: %w", target.Expr, err)
				}
				for _, v := range values {
					shown = append(shown, v.text(target.LegendFormat, unit))
				}
			}
			return harness.Unless(len(shown) > 0, "nothing to show")
		})
		slices.Sort(shown)
		if len(shown) > mostShown {
			shown = append(shown[:mostShown], "...")
		}
		fmt.Fprintf(&page, "| %s | %s |\n", p.Title, strings.Join(shown, ", "))
	}
	t.Logf("\n%s", page.String())
}

// sample is one value that Prometheus answers with.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

// query asks Prometheus an expression.
func (p *prometheus) query(expression string) ([]sample, error) {
	resp, err := http.Get("http://" + p.at + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	return answer.Data.Result, harness.Unless(answer.Status == "success", "%s", answer.Error)
}

var legendLabel = regexp.MustCompile(`\{\{ *(\w+) *\}\}`)

// text is the value as a person reads it, behind the dashboard's words for what it is of.
func (s sample) text(legend, unit string) string {
	of := legendLabel.ReplaceAllStringFunc(legend, func(label string) string { return s.Metric[legendLabel.FindStringSubmatch(label)[1]] })
	n, err := strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64)
	if err != nil {
		n = math.NaN()
	}
	shown := strconv.FormatFloat(n, 'g', 3, 64)
	switch {
	case math.IsNaN(n):
		shown = "none"
	case unit == "s":
		shown = fmt.Sprintf("%.1f ms", n*1000)
	case unit == "bytes":
		shown = fmt.Sprintf("%.1f MiB", n/(1<<20))
	case unit == "Bps":
		shown = fmt.Sprintf("%.0f B/s", n)
	case unit == "reqps":
		shown = fmt.Sprintf("%.2f/s", n)
	}
	return of + " " + shown
}
