package crictl

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// clientVerbs are those of crictl itself.
var clientVerbs = map[string]bool{"help": true, "completion": true, "config": true}

var (
	verbList = regexp.MustCompile(`(?s)\nCOMMANDS:\n(.*?)\n\n`)
	verbLine = regexp.MustCompile(`(?m)^ +([a-z-]+)(?:, [a-z]+)* `)
)

// TestCrictlVerbs: no verb of crictl is forgotten. Whoever takes a newer crictl writes the test of what it can do more.
func TestCrictlVerbs(t *testing.T) {
	t.Parallel()
	out, err := harness.Command("crictl", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	list := verbList.FindStringSubmatch(string(out))
	if list == nil {
		t.Fatalf("crictl help lists no commands:\n%s", out)
	}
	tested := testedVerbs(t)
	verbs := verbLine.FindAllStringSubmatch(list[1], -1)
	if len(verbs) < 30 {
		t.Errorf("crictl help was not understood, it gave %d verbs:\n%s", len(verbs), list[1])
	}
	for _, verb := range verbs {
		if !tested[verb[1]] && !clientVerbs[verb[1]] {
			t.Errorf("no test runs crictl %s", verb[1])
		}
	}
}

// testedVerbs are the verbs with which the tests of all packages call crictl.
func testedVerbs(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	verbs := map[string]bool{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				addVerbs(verbs, f)
			}
		}
	}
	return verbs
}

// verbArgument says by which argument a function that runs crictl is told the verb.
var verbArgument = map[string]int{"Crictl": 0, "TryCrictl": 0, "CrictlJSON": 1, "typing": 2}

// addVerbs adds what is given to such functions in f, and behind CrictlFlags; and of lists that f runs, the first word of each.
func addVerbs(verbs map[string]bool, f *ast.FuncDecl) {
	var lists []ast.Expr
	runsLists := false
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if array, ok := n.Type.(*ast.ArrayType); ok && lastName(array.Elt) == "string" && len(n.Elts) > 0 {
				lists = append(lists, n.Elts[0])
			}
		case *ast.CallExpr:
			i, ok := verbArgument[lastName(n.Fun)]
			if lastName(n.Fun) == "append" && len(n.Args) > 1 {
				flags, isCall := n.Args[0].(*ast.CallExpr)
				i, ok = 1, isCall && lastName(flags.Fun) == "CrictlFlags"
			}
			if ok && i < len(n.Args) {
				addVerb(verbs, n.Args[i])
				runsLists = runsLists || n.Ellipsis.IsValid()
			}
		}
		return true
	})
	if runsLists {
		for _, first := range lists {
			addVerb(verbs, first)
		}
	}
}

func addVerb(verbs map[string]bool, e ast.Expr) {
	if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		if verb, err := strconv.Unquote(lit.Value); err == nil {
			verbs[verb] = true
		}
	}
}

// lastName is the last name of an expression such as d.crictl.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// TestCrictlEvents: a person sees what happens, as it happens.
func TestCrictlEvents(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	var out harness.Buffer
	cmd := harness.Command("crictl", append(d.CrictlFlags(), "events")...)
	cmd.Stdout, cmd.Stderr = &out, &out
	d.Must(cmd.Start())
	crictl := harness.Watch(cmd)
	defer crictl.Wait(d)
	defer crictl.Signal(syscall.SIGTERM)
	// It does not say when it has begun: somebody starts and ends until it tells so.
	p := d.RunPod(harness.OnHostNetwork)
	harness.Eventually(t, "the life of a container", func() error {
		c := p.Run(harness.Shell("exit 0"))
		c.WaitExit()
		c.Remove()
		for _, kind := range []string{"CREATED", "STARTED", "STOPPED", "DELETED"} {
			if err := harness.Unless(strings.Contains(out.String(), "CONTAINER_"+kind+"_EVENT"), "no %s: %s", kind, out.String()); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestCrictlCheckpoints: who tries is told why not, and nothing is written.
func TestCrictlCheckpoints(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	archive := filepath.Join(d.Dir, "c.tar")
	_, err := d.TryCrictl("checkpoint", "--export", archive, c.ID)
	if err == nil || !strings.Contains(err.Error(), "Unimplemented") || !strings.Contains(err.Error(), "does not support checkpoint") {
		t.Errorf("checkpoint: %v", err)
	}
	if _, err := os.Stat(archive); err == nil {
		t.Error("there is an archive")
	}
	c.Exec("true")
}
