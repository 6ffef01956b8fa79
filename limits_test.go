package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// A type has at most maxMethods methods, and a package at most maxFiles files, not counting tests.
const maxMethods, maxFiles = 30, 20

// These types are larger, up to their own limits: a gRPC interface and a flat list of steps.
var moreMethods = map[string]int{"server.runtimeService": 60, "sandbox/spec.draft": 60}

// TestLimits checks the size of types and packages.
func TestLimits(t *testing.T) {
	methods, files := map[string]int{}, map[string]int{}
	seen := map[string]bool{}
	eachImport(t, func(pkg, file, _ string) {
		if seen[file] || strings.HasSuffix(file, "_test.go") {
			return
		}
		seen[file] = true
		files[pkg]++
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
				methods[pkg+"."+receiver(f.Recv.List[0].Type)]++
			}
		}
	})
	if len(methods) < 100 || methods["server.runtimeService"] <= maxMethods {
		t.Fatalf("%d types with methods, %d methods of server.runtimeService: they are not counted",
			len(methods), methods["server.runtimeService"])
	}
	hold(t, "methods", methods, maxMethods, moreMethods)
	hold(t, "files", files, maxFiles, nil)
}

// hold reports counts above the limit or their exception, and exceptions that are no longer needed.
func hold(t *testing.T, what string, counts map[string]int, most int, exceptions map[string]int) {
	t.Helper()
	for name, n := range counts {
		if limit := max(most, exceptions[name]); n > limit {
			t.Errorf("%s has %d %s, at most %d", name, n, what, limit)
		}
	}
	for name := range exceptions {
		if counts[name] <= most {
			t.Errorf("%s has %d %s: take it out of the list of exceptions", name, counts[name], what)
		}
	}
}

// receiver returns the name of a receiver's type.
func receiver(e ast.Expr) string {
	for {
		switch of := e.(type) {
		case *ast.StarExpr:
			e = of.X
		case *ast.IndexExpr:
			e = of.X
		case *ast.IndexListExpr:
			e = of.X
		case *ast.Ident:
			return of.Name
		default:
			return ""
		}
	}
}
