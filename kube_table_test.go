package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestScenarioTables checks that every test of kube-tests and vm-tests has its row in
// docs/kubernetes.md, and that every row names an existing test.
func TestScenarioTables(t *testing.T) {
	doc, err := os.ReadFile("docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	for module, sections := range map[string][]string{
		"kube-tests": {"Scenarios and their tests"},
		"vm-tests":   {"On a machine with systemd", "SELinux"},
	} {
		tests, err := allTests(module)
		if err != nil {
			t.Fatal(err)
		}
		var named []string
		for _, section := range sections {
			_, table, _ := strings.Cut(string(doc), "\n## "+section+"\n")
			table, _, _ = strings.Cut(table, "\n## ")
			named = append(named, testName.FindAllString(table, -1)...)
		}
		for _, name := range named {
			if !tests[name] {
				t.Errorf("docs/kubernetes.md names %s, which %s does not have", name, module)
			}
		}
		for name := range tests {
			if !slices.Contains(named, name) {
				t.Errorf("%s of %s has no row in docs/kubernetes.md", name, module)
			}
		}
	}
}
