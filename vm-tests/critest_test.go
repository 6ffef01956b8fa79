package vmtests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// critestLeast is less than the number of specs that this machine can run.
const critestLeast = 108

// smokeFocus are ten specs of critest, of as many of its parts.
const smokeFocus = "HostPID|HostNetwork is|PodPID|MaskedPaths|seccomp default|" +
	"should support (starting|stopping|removing|creating) container|should support execSync$|DNS config"

// leftOut are specs that cannot run here: benchmarks, and the one whose image only its own registry on
// the internet has.
const leftOut = "benchmark|public image with digest should be pulled"

// TestCritest is the validation suite of the CRI, which finds systemd and AppArmor here.
func TestCritest(t *testing.T) {
	forEachSetup(t, func(t *testing.T, s setup) {
		args, least, most := "", critestLeast, 80*time.Minute
		if *smoke || *few {
			args, least, most = "-ginkgo.focus '"+smokeFocus+"'", 10, 15*time.Minute
		}
		specs := critest(t, args, most)
		ran := 0
		for _, spec := range specs {
			if spec.LeafNodeType != "It" && !spec.failed() || strings.Contains(spec.name(), "benchmark") {
				continue
			}
			if spec.State != "skipped" {
				ran++
			}
			t.Run(spec.name(), func(t *testing.T) {
				if spec.State == "skipped" {
					t.Skip(spec.Failure.Message)
				}
				if spec.failed() {
					t.Errorf("%s after %s: %s\n%s", spec.State, spec.RunTime.Round(time.Millisecond), spec.Failure.Message,
						spec.CapturedGinkgoWriterOutput)
				}
			})
		}
		t.Logf("%d specs have run", ran)
		if ran < least {
			t.Errorf("only %d specs have run; want at least %d", ran, least)
		}
	})
}

// critest runs the suite on the machine and returns its report.
func critest(t *testing.T, args string, most time.Duration) []spec {
	t.Helper()
	out := mustWithin(t, most, fmt.Sprintf(`cd /root; rm -f critest.json
		: >critest.yaml
		critest -config critest.yaml -runtime-endpoint unix:///run/cribox/cribox.sock -ginkgo.no-color -ginkgo.skip '%s' \
			-ginkgo.json-report /root/critest.json %s >critest.log 2>&1 || [ -s critest.json ] || { tail -40 critest.log >&2; exit 1; }
		cat critest.json`, leftOut, args))
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal([]byte(out), &suites); err != nil {
		t.Fatalf("the report of critest: %v", err)
	}
	var specs []spec
	for _, s := range suites {
		specs = append(specs, s.SpecReports...)
	}
	return specs
}

// spec is what ginkgo's JSON report says of one spec, as far as we read it.
type spec struct {
	ContainerHierarchyTexts    []string
	LeafNodeText, LeafNodeType string
	State                      string
	RunTime                    time.Duration
	Failure                    struct{ Message string }
	CapturedGinkgoWriterOutput string
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

func (s spec) failed() bool { return s.State != "passed" && s.State != "skipped" }
