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

// mayImport is the table of ARCHITECTURE.md: which rooms a room may know.
var mayImport = map[string][]string{
	"":                   {"server", "sandbox", "imageservice", "cni", "runtimeshim"},
	"server":             {"sandbox", "imageservice", "internal/guard"},
	"sandbox":            {"sandbox/spec", "sandbox/store", "sandbox/pause", "sandbox/userns", "sandbox/cgroup", "sandbox/apparmor", "sandbox/selinux", "imageservice", "cni", "runtimeshim", "internal/tree", "internal/guard", "internal/keyed"},
	"sandbox/spec":       {},
	"sandbox/store":      {},
	"sandbox/pause":      {},
	"sandbox/userns":     {},
	"sandbox/cgroup":     {},
	"sandbox/apparmor":   {},
	"sandbox/selinux":    {"internal/tree"},
	"imageservice":       {"internal/tree", "internal/guard", "internal/keyed"},
	"cni":                {"internal/guard", "internal/keyed"},
	"runtimeshim":        {"runtimeshim/crilog", "internal/tree", "internal/guard"},
	"runtimeshim/crilog": {},
	"internal/tree":      {},
	"internal/guard":     {},
	"internal/keyed":     {},
}

// onlyIn says where a library may be met, tests included: rooms, and single files.
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

// TestRooms holds every import of the module against the two tables.
func TestRooms(t *testing.T) {
	files := 0
	eachImport(t, func(room, file, path string) {
		files++
		if other, ours := strings.CutPrefix(path, module+"/"); ours && other != room && !slices.Contains(mayImport[room], other) {
			t.Errorf("%s: room %q may not import room %q", file, room, other)
		}
		for _, rule := range onlyIn {
			if (path == rule.library || strings.HasPrefix(path, rule.library+"/")) && !slices.Contains(rule.in, room) && !slices.Contains(rule.in, file) {
				t.Errorf("%s: %s belongs to %q alone", file, rule.library, rule.in)
			}
		}
	})
	if files < 100 {
		t.Fatalf("only %d imports seen: the walk has missed the rooms", files)
	}
}

func eachImport(t *testing.T, visit func(room, file, path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (file == "crictl-tests" || file == "kube-tests" || file == "hack" || file == "bin" || strings.HasPrefix(file, ".") && file != ".") {
			return filepath.SkipDir // other modules, and no Go
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		room := filepath.ToSlash(filepath.Dir(file))
		if room == "." {
			room = ""
		}
		if _, ok := mayImport[room]; !ok {
			t.Errorf("%s lies in no room of the table", file)
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
			visit(room, file, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
