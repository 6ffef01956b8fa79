package imagetest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What containerd does with an input that cribox refuses.
const (
	Same  = "refuses it too"
	Late  = "pulls it, and no container of it starts"
	Runs  = "runs it"
	Waits = "runs it, whatever it takes of the node"
)

// Why cribox refuses an input that containerd runs.
const (
	Ambiguous = "it means one thing to one reader and another to the next: " +
		"a scanner may have seen another image (CVE-2021-41190)"
	Amplifies = "a small image would take much of the node's memory or disk"
	Wraps     = "the number would become another one"
	NotYet    = "nobody was seen to use it; the store of blobs and the image's id are sha256"
)

type Refusal struct {
	Name       string
	Try        func(t *testing.T) error
	Want       string // text in the error
	Containerd string
	Why        string // set if containerd runs the input
}

// RefusalsIn returns the texts of all calls of fault.Refuse in the source files.
func RefusalsIn(t *testing.T, files ...string) map[string]*regexp.Regexp {
	t.Helper()
	all := map[string]*regexp.Regexp{}
	set := token.NewFileSet()
	for _, name := range files {
		file, err := parser.ParseFile(set, name, nil, 0)
		Must(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "Refuse" {
				return true
			}
			format, err := strconv.Unquote(call.Args[1].(*ast.BasicLit).Value)
			Must(t, err)
			text := regexp.MustCompile(`%[a-z]`).ReplaceAllString(regexp.QuoteMeta(format), ".*")
			all[set.Position(call.Pos()).String()] = regexp.MustCompile("(?s)" + strings.ReplaceAll(text, "%%", "%"))
			return true
		})
	}
	return all
}

// CheckRefusals runs the rows, and requires one for each refusal in the source, except for those in
// unreached.
func CheckRefusals(t *testing.T, rows []Refusal, sources map[string]*regexp.Regexp, unreached []string) {
	t.Helper()
	var said []string
	for _, r := range rows {
		err := r.Try(t)
		if err == nil || !strings.Contains(err.Error(), r.Want) {
			t.Errorf("%s: %v, want %q", r.Name, err, r.Want)
			continue
		}
		if taken := r.Containerd == Runs || r.Containerd == Waits; taken != (r.Why != "") {
			t.Errorf("%s: containerd %s, and the reason is %q", r.Name, r.Containerd, r.Why)
		}
		said = append(said, err.Error())
	}
	for at, text := range sources {
		if !slices.ContainsFunc(slices.Concat(said, unreached), text.MatchString) {
			t.Errorf("%s: no row has this refusal, %s. Does containerd run such an image? Then it should run, "+
				"unless that is dangerous", at, text)
		}
	}
}
