package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cribox/cribox"

// onlyIn says where a library may be met, tests included: packages, and single files.
var onlyIn = []struct {
	library string
	in      []string
}{
	{"google.golang.org/grpc", []string{"", "server"}},
	{"k8s.io/cri-api", []string{"server", "server/metrics", "sandbox", "sandbox/node", "sandbox/table", "sandbox/network", "sandbox/rootfs", "sandbox/pins", "sandbox/podfiles", "sandbox/stats", "sandbox/streams", "sandbox/spec", "sandbox/spec/limits", "sandbox/spec/users", "sandbox/spec/signals", "bench_test.go", "bench_monitor_test.go"}}, // a client
	{"github.com/prometheus/client_golang", []string{"internal/monitor"}},
	{"go.opentelemetry.io", []string{"internal/monitor", "monitor.go"}},
	{"github.com/prometheus/client_model", []string{"server", "server/metrics"}},
	{"k8s.io/cri-streaming", []string{"server/streaming"}},
	{"tags.cncf.io/container-device-interface/pkg/parser", []string{"sandbox/spec"}},
	{"tags.cncf.io/container-device-interface/pkg/cdi", []string{"sandbox/node"}},
	{"github.com/opencontainers/selinux", []string{"sandbox/selinux"}},
	{"k8s.io/streaming", []string{"server/streaming"}},
	{"github.com/spf13/cobra", []string{"internal/cli", "internal/manual"}},
	{"github.com/cpuguy83/go-md2man", []string{"internal/manual"}},
	{"github.com/gorilla/websocket", []string{"server/streaming"}},
	{"github.com/containernetworking/cni", []string{"cni", "cni/program"}},
	{"github.com/google/nftables", []string{"cni/nat"}},
	{"github.com/godbus/dbus", []string{"runtimeshim/systemd"}},
	{"go.etcd.io/bbolt", []string{"internal/migrate"}},
	{"github.com/mdlayher/netlink", []string{"cni/nat"}},
	{"github.com/containerd/containerd/v2/core", []string{"imageservice/registry", "internal/migrate/store_test.go"}},
	{"github.com/containerd/containerd/v2/pkg/archive", []string{"imageservice"}},
}

// testsMayImport is what the tests of a package may import besides.
var testsMayImport = map[string][]string{
	"runtimeshim/client":    {"runtimeshim/shim", "runtimeshim/logger", "runtimeshim/cgroup", "runtimeshim/systemd"}, // they run both
	"sandbox/rootfs":        {"sandbox/store"},
	"imageservice/layers":   {"imageservice/imagetest"},
	"imageservice/registry": {"imageservice/imagetest"},
}

// TestPackages holds every import of the module against the table of ARCHITECTURE.md and against
// onlyIn, and the table against the folders.
func TestPackages(t *testing.T) {
	doc, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	mayImport := importTable(string(doc))
	imports, seen := 0, map[string]bool{}
	eachImport(t, func(pkg, file, imported string) {
		imports++
		allowed, known := mayImport[pkg]
		if !known && !seen[pkg] {
			t.Errorf("%s lies in no package of the table", file)
		}
		seen[pkg] = true
		if strings.HasSuffix(file, "_test.go") {
			allowed = slices.Concat(allowed, testsMayImport[pkg])
		}
		if other, ours := strings.CutPrefix(imported, module+"/"); ours && other != pkg && !allows(allowed, other) {
			t.Errorf("%s: package %q may not import package %q", file, pkg, other)
		}
		for _, rule := range onlyIn {
			met := imported == rule.library || strings.HasPrefix(imported, rule.library+"/")
			if met && !slices.Contains(rule.in, pkg) && !slices.Contains(rule.in, file) {
				t.Errorf("%s: %s belongs to %q alone", file, rule.library, rule.in)
			}
		}
	})
	if imports < 1000 {
		t.Fatalf("only %d imports seen: the walk has missed packages", imports)
	}
	for pkg, allowed := range mayImport {
		if !seen[pkg] && !slices.Contains(elsewhere, pkg) {
			t.Errorf("the table has package %q, which has no file", pkg)
		}
		for _, other := range allowed {
			if _, known := mayImport[path.Dir(other)]; path.Base(other) == "*" && !known {
				t.Errorf("the row of %q allows %s, which is not in the table", pkg, other)
			} else if _, known := mayImport[other]; path.Base(other) != "*" && !known {
				t.Errorf("the row of %q allows %s, which is not in the table", pkg, other)
			}
		}
	}
}

// TestPackagesAreHeld: the table is read as it is written.
func TestPackagesAreHeld(t *testing.T) {
	table := importTable("| the root: x | meets | a, b/c |\n| `a` | rule; of `x` | a/\\*, b |\n| `b` | rule | none |\n")
	for pkg, row := range map[string]struct{ yes, no []string }{
		"":  {[]string{"a", "b/c"}, []string{"b", "a/x", "c"}},
		"a": {[]string{"a/x", "b"}, []string{"a/x/y", "b/c", "ax"}},
		"b": {nil, []string{"a", "none", ""}},
	} {
		for _, other := range row.yes {
			if !allows(table[pkg], other) {
				t.Errorf("%q may not import %q", pkg, other)
			}
		}
		for _, other := range row.no {
			if allows(table[pkg], other) {
				t.Errorf("%q may import %q", pkg, other)
			}
		}
	}
	if len(table) != 3 {
		t.Errorf("read %v", table)
	}
}

var importRow = regexp.MustCompile("(?m)^\\| (?:`([a-z/-]+)`|the root[^|]*) \\| [^|]+ \\| ([^|]+) \\|$")

// importTable returns which packages a package may import; the root is "".
func importTable(doc string) map[string][]string {
	table := map[string][]string{}
	for _, m := range importRow.FindAllStringSubmatch(doc, -1) {
		table[m[1]] = nil
		if m[2] != "none" {
			table[m[1]] = strings.Split(strings.ReplaceAll(m[2], `\*`, "*"), ", ")
		}
	}
	return table
}

// allows says whether one of the patterns is the package, or x/* for a package right below x.
func allows(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, pkg)
		return ok && err == nil
	})
}

// elsewhere are folders of other modules, and without Go.
var elsewhere = []string{"crictl-tests", "kube-tests", "vm-tests", "keyless", "hack", "bin", "dist", "docs"}

func eachImport(t *testing.T, visit func(pkg, file, imported string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (slices.Contains(elsewhere, file) || strings.HasPrefix(file, ".") && file != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		pkg := strings.TrimPrefix(path.Dir(filepath.ToSlash(file)), ".")
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		if len(parsed.Imports) == 0 {
			visit(pkg, file, "") // the package is there
		}
		for _, i := range parsed.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			visit(pkg, file, imported)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSandboxInterfaces: sandbox uses the types of the runtime, the images and the network, but calls
// none of their functions: it has the interfaces Runtime, rootfs.Images and network.Network.
func TestSandboxInterfaces(t *testing.T) {
	pure := []string{"runtimeshim.CgroupOf"} // text to text
	behind := []string{"runtimeshim", "imageservice", "cni"}
	seen := 0
	err := filepath.WalkDir("sandbox", func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(behind, x.Name) && x.Obj == nil {
				seen++
			}
			return true
		})
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if ok && x.Obj == nil && slices.Contains(behind, x.Name) && !slices.Contains(pure, x.Name+"."+sel.Sel.Name) {
				t.Errorf("%s calls %s.%s: use the interface", file, x.Name, sel.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Fatalf("only %d uses of the packages behind the interfaces were seen", seen)
	}
}

// TestHelperIsSmall: cribox-helper links nothing that only the daemon needs. Whatever a package
// prepares when its program starts costs memory twice, in the shim and in the logger.
func TestHelperIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cribox-helper").Output()
	if err != nil {
		t.Fatal("go list: ", err)
	}
	linked := strings.Fields(string(out))
	for _, p := range linked {
		for _, large := range []string{"google.golang.org/", "k8s.io/", "net/http", "github.com/prometheus/", "go.opentelemetry.io/",
			"github.com/spf13/", "github.com/containerd/containerd/", "github.com/pelletier/"} {
			if strings.HasPrefix(p, large) {
				t.Errorf("cribox-helper links %s", p)
			}
		}
	}
	if !slices.Contains(linked, module+"/runtimeshim/shim") {
		t.Error("cribox-helper does not link the shim")
	}
}
