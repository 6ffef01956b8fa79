package table

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cribox/cribox/sandbox/store"
)

// TestMoves: what is not drawn in package store is no transition.
func TestMoves(t *testing.T) {
	pods := strings.Fields("creating>ready ready>stopping stopping>notready creating>removing ready>removing stopping>removing " +
		"notready>removing removing>removing")
	containers := strings.Fields("creating>created starting>created created>starting starting>running running>stopping " +
		"creating>exited created>exited starting>exited running>exited stopping>exited creating>removing created>removing " +
		"starting>removing running>removing stopping>removing exited>removing removing>removing")
	var podsCan, containersCan []string
	for _, from := range []string{store.PodCreating, store.PodReady, store.PodStopping, store.PodNotReady, store.PodRemoving} {
		for _, to := range []string{store.PodCreating, store.PodReady, store.PodStopping, store.PodNotReady, store.PodRemoving} {
			r := store.Pod{State: from}
			if moved := movePod(&r, to); moved {
				podsCan = append(podsCan, from+">"+to)
			} else if r.State != from {
				t.Errorf("pod %s became %s", from, r.State)
			}
		}
	}
	all := []string{store.ContainerCreating, store.ContainerCreated, store.ContainerStarting, store.ContainerRunning, store.ContainerStopping,
		store.ContainerExited, store.ContainerRemoving}
	for _, from := range all {
		for _, to := range all {
			r := store.Container{State: from}
			if moved := moveContainer(&r, to); moved {
				containersCan = append(containersCan, from+">"+to)
			} else if r.State != from {
				t.Errorf("container %s became %s", from, r.State)
			}
		}
	}
	for what, lists := range map[string][2][]string{"pods": {podsCan, pods}, "containers": {containersCan, containers}} {
		slices.Sort(lists[0])
		slices.Sort(lists[1])
		if !slices.Equal(lists[0], lists[1]) {
			t.Errorf("%s can go\n%v, want\n%v", what, lists[0], lists[1])
		}
	}
}

// TestOneWriter: the state of a record is changed in states.go alone, and nothing else writes
// records.
func TestOneWriter(t *testing.T) {
	writes := []string{"Create", "Update", "ForceUpdate", "Remove"}
	seen := 0
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Base(filepath.Dir(path)) == "store" {
			return err
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		own := path == "../table/states.go"
		found := func(at token.Pos, what string) {
			seen++
			if !own {
				t.Errorf("%s: %s: that is for states.go", files.Position(at), what)
			}
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, to := range n.Lhs {
					if s, ok := to.(*ast.SelectorExpr); ok && s.Sel.Name == "State" {
						found(n.Pos(), "changes a state")
					}
				}
			case *ast.CallExpr:
				call, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || !slices.Contains(writes, call.Sel.Name) {
					return true
				}
				if on, ok := call.X.(*ast.SelectorExpr); ok && on.Sel.Name == "store" {
					found(n.Pos(), "writes a record")
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 15 {
		t.Fatalf("only %d changes seen: the walk has missed states.go", seen)
	}
}
