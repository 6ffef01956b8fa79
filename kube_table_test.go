package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestScenarioTable checks that every test of kube-tests has its row in docs/kubernetes.md, and
// that every row names an existing test.
func TestScenarioTable(t *testing.T) {
	doc, err := os.ReadFile("docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := allTests("kube-tests")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(doc), "\n## Scenarios and their tests\n")
	named := testName.FindAllString(table, -1)
	for _, name := range named {
		if !tests[name] {
			t.Errorf("docs/kubernetes.md names %s, which does not exist", name)
		}
	}
	for name := range tests {
		if !slices.Contains(named, name) {
			t.Errorf("%s has no row in docs/kubernetes.md", name)
		}
	}
}
