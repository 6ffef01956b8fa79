package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cribox/cribox"

// mayImport is the table of ARCHITECTURE.md: which packages a package may import.
var mayImport = map[string][]string{
	"":                       {"config", "preflight", "server", "sandbox", "imageservice", "cni", "runtimeshim", "runtimeshim/client", "runtimeshim/shim", "runtimeshim/logger", "internal/step"},
	"config":                 {"cni", "runtimeshim"},
	"preflight":              {"config", "sandbox", "imageservice", "cni", "runtimeshim/oci"},
	"server":                 {"sandbox", "imageservice", "internal/guard"},
	"sandbox":                {"sandbox/spec", "sandbox/store", "sandbox/layout", "sandbox/pause", "sandbox/userns", "sandbox/cgroup", "sandbox/apparmor", "sandbox/selinux", "imageservice", "cni", "runtimeshim", "runtimeshim/client", "runtimeshim/oci", "internal/tree", "internal/guard", "internal/keyed"},
	"sandbox/spec":           {},
	"sandbox/store":          {},
	"sandbox/layout":         {},
	"sandbox/pause":          {},
	"sandbox/userns":         {},
	"sandbox/cgroup":         {},
	"sandbox/apparmor":       {},
	"sandbox/selinux":        {"internal/tree"},
	"imageservice":           {"imageservice/fault", "imageservice/imageref", "imageservice/manifest", "imageservice/overlay", "imageservice/progress", "imageservice/imagetest", "internal/tree", "internal/guard", "internal/keyed"},
	"imageservice/fault":     {},
	"imageservice/imageref":  {},
	"imageservice/progress":  {},
	"imageservice/manifest":  {"imageservice/fault", "imageservice/imageref"},
	"imageservice/overlay":   {"imageservice/fault", "internal/tree", "internal/guard"},
	"imageservice/imagetest": {},
	"cni":                    {"internal/guard", "internal/keyed", "internal/step"},
	"runtimeshim":            {},
	"runtimeshim/client":     {"runtimeshim", "runtimeshim/helper", "runtimeshim/procfd", "runtimeshim/statedir", "runtimeshim/unixfd", "runtimeshim/wire", "internal/guard"},
	"runtimeshim/shim":       {"runtimeshim", "runtimeshim/cgroup", "runtimeshim/helper", "runtimeshim/oci", "runtimeshim/procfd", "runtimeshim/statedir", "runtimeshim/unixfd", "runtimeshim/wire"},
	"runtimeshim/logger":     {"runtimeshim", "runtimeshim/crilog", "runtimeshim/helper", "runtimeshim/statedir", "runtimeshim/unixfd", "runtimeshim/wire"},
	"runtimeshim/crilog":     {},
	"runtimeshim/oci":        {"runtimeshim/helper", "runtimeshim/procfd", "runtimeshim/statedir", "runtimeshim/unixfd", "runtimeshim/wire"},
	"runtimeshim/cgroup":     {"runtimeshim", "runtimeshim/helper", "runtimeshim/procfd", "runtimeshim/statedir", "runtimeshim/unixfd", "internal/tree"},
	"runtimeshim/wire":       {"runtimeshim", "runtimeshim/helper", "runtimeshim/unixfd"},
	"runtimeshim/statedir":   {},
	"runtimeshim/procfd":     {"runtimeshim/unixfd"},
	"runtimeshim/helper":     {"runtimeshim/unixfd"},
	"runtimeshim/unixfd":     {},
	"internal/tree":          {},
	"internal/guard":         {},
	"internal/keyed":         {},
	"internal/step":          {},
}

// testsMayImport is what the tests of a package may import besides.
var testsMayImport = map[string][]string{
	"runtimeshim/client": {"runtimeshim/shim", "runtimeshim/logger", "runtimeshim/cgroup"}, // they run both
}

// onlyIn says where a library may be met, tests included: packages, and single files.
var onlyIn = []struct {
	library string
	in      []string
}{
	{"google.golang.org/grpc", []string{"", "server"}},
	{"k8s.io/cri-api", []string{"server", "sandbox", "sandbox/spec", "bench_test.go"}}, // a client
	{"k8s.io/cri-streaming", []string{"server"}},
	{"tags.cncf.io/container-device-interface/pkg/parser", []string{"sandbox/spec"}},
	{"tags.cncf.io/container-device-interface/pkg/cdi", []string{"sandbox"}},
	{"github.com/opencontainers/selinux", []string{"sandbox/selinux"}},
	{"k8s.io/streaming", []string{"server"}},
	{"github.com/gorilla/websocket", []string{"server"}},
	{"github.com/containernetworking/cni", []string{"cni"}},
	{"github.com/containerd/containerd/v2/core", []string{"imageservice"}},
	{"github.com/containerd/containerd/v2/plugins", []string{"imageservice"}},
	{"github.com/containerd/containerd/v2/pkg/archive", []string{"imageservice"}},
}

// TestPackages holds every import of the module against the two tables.
func TestPackages(t *testing.T) {
	files := 0
	eachImport(t, func(pkg, file, path string) {
		files++
		may := mayImport[pkg]
		if strings.HasSuffix(file, "_test.go") {
			may = slices.Concat(may, testsMayImport[pkg])
		}
		if other, ours := strings.CutPrefix(path, module+"/"); ours && other != pkg && !slices.Contains(may, other) {
			t.Errorf("%s: package %q may not import package %q", file, pkg, other)
		}
		for _, rule := range onlyIn {
			met := path == rule.library || strings.HasPrefix(path, rule.library+"/")
			if met && !slices.Contains(rule.in, pkg) && !slices.Contains(rule.in, file) {
				t.Errorf("%s: %s belongs to %q alone", file, rule.library, rule.in)
			}
		}
	})
	if files < 100 {
		t.Fatalf("only %d imports seen: the walk has missed the packages", files)
	}
}

var elsewhere = []string{"crictl-tests", "kube-tests", "hack", "bin"}

func eachImport(t *testing.T, visit func(pkg, file, path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (slices.Contains(elsewhere, file) || strings.HasPrefix(file, ".") && file != ".") {
			return filepath.SkipDir // other modules, and no Go
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(file))
		if pkg == "." {
			pkg = ""
		}
		if _, ok := mayImport[pkg]; !ok {
			t.Errorf("%s lies in no package of the table", file)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range parsed.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			visit(pkg, file, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
