package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// crictlPackages are the packages of crictl-tests that run here, and those of their tests that run always: what they are about is
// another on such a machine. With -all the other tests of the packages run too; with -few only the packages do that depend on the
// kernel.
var crictlPackages = []struct {
	name, always string
	kernel       bool
}{
	{"security", "AppArmor|AmbientCapabilities|SEC(08|11|12|19|20|21|80|82)", true},
	{"resources", "OOM|Update|PodResources|ContainerStats|PodStats|Metrics$|PidsLimit|HugepageLimits|CostOfAPod$", true},
	{"lifecycle", "CgroupParent|Resources$|LimitsOfTheHost|Confinement|Privileged|Stop|PauseDies|(Daemon|Shim)IsStopped|" +
		"ServiceManager|Share|SEC70|UpgradeKeepsTheShim|EventsOfDeaths|LedgerSees|CyclesLeaveNothing", false},
	{"kills", ".", false},
}

// cannotRun are tests of these packages that do not run here, and why.
var cannotRun = map[string]string{
	"TestUnkillable":                "SIGKILL ends what a cgroup of version 2 has frozen",
	"TestEventsSlowSubscriber":      "its thousands of events take longer than the two minutes of a subscription, when the processor is emulated",
	"TestStepKills":                 "hundreds of kills take hours, when the processor is emulated",
	"TestImageCommandKills":         "as TestStepKills",
	"TestRecordsOfAnEarlierVersion": "it reads files that lie beside its source",
}

// TestCrictlTests runs tests that know the host well, in the place of their usual host, where systemd makes the cgroups, which are of
// version 2, and AppArmor confines containers. Their daemons are the installed program with the usual configuration, and folders of
// their own. A test that skips here has not shown anything, and has to be one of cannotRun.
func TestCrictlTests(t *testing.T) {
	notInSmoke(t)
	setups[0].use(t)
	var packages []string
	for _, p := range crictlPackages {
		packages = append(packages, "./"+p.name)
	}
	programs := buildTests(t, "../crictl-tests", packages...)
	goCommand(t, "..", "build", "-tags", "steps", "-ldflags", "-s -w", "-o", programs+"/cribox-steps", ".")
	send(t, filepath.Join(programs, "cribox-steps"), "/root/crictl-tests/bin/cribox-steps")
	// The harness wants to see all programs; these tests do not execute the last one.
	must(t, `cd /root/crictl-tests/bin
		ln -sfn /opt/cni/bin cni
		for p in cribox cribox-helper runc crictl critest; do ln -sf "$(command -v $p)" $p; done
		ln -sf /bin/false ginkgo`)
	for _, p := range crictlPackages {
		if *few && !p.kernel {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			send(t, filepath.Join(programs, p.name+".test"), "/root/crictl-tests/"+p.name+".test")
			pattern := "^Test(" + p.always + ")"
			if *all {
				pattern = "."
			}
			results := crictlTests(t, p.name, pattern)
			for _, name := range slices.Sorted(maps.Keys(results)) {
				t.Run(name, func(t *testing.T) { results[name].tell(t, cannotRun[name]) })
			}
		})
	}
}

// buildTests returns a folder with the test programs of packages of a module.
func buildTests(t *testing.T, module string, packages ...string) string {
	t.Helper()
	dir := t.TempDir()
	goCommand(t, module, append([]string{"test", "-c", "-ldflags", "-s -w", "-o", dir + "/"}, packages...)...)
	return dir
}

func goCommand(t *testing.T, module string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = module
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s in %s: %v\n%s", args[0], module, err, out)
	}
}

// crictlTests runs the tests of a package that match the pattern, and returns how each ended.
func crictlTests(t *testing.T, name, pattern string) map[string]*crictlResult {
	t.Helper()
	program := fmt.Sprintf("cd /root/crictl-tests; FIXTURE_TOOLBOX=/usr/local/bin/toolbox CRIBOX_BIN=$PWD/bin ./%s.test ", name)
	results := map[string]*crictlResult{}
	for _, test := range strings.Fields(must(t, fmt.Sprintf("%s -test.list '%s'", program, pattern))) {
		results[test] = &crictlResult{}
	}
	out := mustWithin(t, 100*time.Minute, fmt.Sprintf(`%s -test.v=test2json -test.parallel 2 -test.timeout 90m -test.run '%s' -test.skip '^(%s)$' \
			>log 2>&1 || true
		cat log`, program, pattern, strings.Join(slices.Sorted(maps.Keys(cannotRun)), "|")))
	var whole crictlResult
	for _, e := range testEvents(t, out) {
		test, sub, _ := strings.Cut(e.Test, "/")
		r := results[test]
		if r == nil {
			r = &whole
		}
		r.output.WriteString(e.Output)
		if sub == "" && slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
			r.ended = e.Action
		}
	}
	t.Log(whole.quoted())
	if len(results) == 0 {
		t.Errorf("no test of %s matches %s", name, pattern)
	}
	return results
}

// testEvent is what `go tool test2json` makes of what a test program prints, as far as we read it.
type testEvent struct{ Action, Test, Output string }

func testEvents(t *testing.T, printed string) (events []testEvent) {
	t.Helper()
	convert := exec.Command("go", "tool", "test2json")
	convert.Stdin = strings.NewReader(printed + "\n")
	out, err := convert.Output()
	for lines := json.NewDecoder(bytes.NewReader(out)); err == nil && lines.More(); {
		var e testEvent
		err = lines.Decode(&e)
		events = append(events, e)
	}
	if err != nil {
		t.Fatalf("go tool test2json: %v", err)
	}
	return events
}

// crictlResult is how a test of crictl-tests ended: pass, fail or skip, or not at all.
type crictlResult struct {
	ended  string
	output strings.Builder
}

// tell makes the result that of a test here.
func (r *crictlResult) tell(t *testing.T, cannot string) {
	t.Helper()
	switch {
	case cannot != "" && r.ended == "":
		t.Skip(cannot)
	case r.ended == "skip":
		t.Errorf("it skips, and is not one of cannotRun:%s", r.quoted())
	case r.ended == "fail":
		t.Error(r.quoted())
	case r.ended != "pass":
		t.Errorf("it has not ended:%s", r.quoted())
	}
}

// quoted is what the test printed, marked line by line: it looks like what tests print here.
func (r *crictlResult) quoted() string {
	return strings.ReplaceAll("\n"+strings.TrimSpace(r.output.String()), "\n", "\n| ")
}
