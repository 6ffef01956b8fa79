package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

var fieldRow = regexp.MustCompile(`^\| [^|]+ \| [^|]+ \| ([^|]+) \|$`)

// TestFieldTable checks that every row of docs/field.md names at least one test, and that each
// exists.
func TestFieldTable(t *testing.T) {
	doc, err := os.ReadFile("docs/field.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := allTests(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, complaint := range fieldFaults(string(doc), tests) {
		t.Error(complaint)
	}
}

// TestFieldTableIsHeld checks that TestFieldTable would find faults.
func TestFieldTableIsHeld(t *testing.T) {
	const good = "# Field\n\n| seen | cribox | shown by |\n|---|---|---|\n| a mount | works | TestA, TestB |\n"
	tests := map[string]bool{"TestA": true, "TestB": true}
	if faults := fieldFaults(good, tests); len(faults) > 0 {
		t.Errorf("a good table: %v", faults)
	}
	for name, change := range map[string][2]string{
		"no such test":     {"TestB", "TestC"},
		"no test":          {"TestA, TestB", "by hand"},
		"a column too few": {"| works ", ""},
		"no rows":          {"| a mount | works | TestA, TestB |\n", ""},
	} {
		if len(fieldFaults(strings.Replace(good, change[0], change[1], 1), tests)) == 0 {
			t.Errorf("%s, and the check finds nothing", name)
		}
	}
}

func fieldFaults(doc string, tests map[string]bool) (faults []string) {
	rows := 0
	for line := range strings.Lines(doc) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasPrefix(line, "| ") || strings.HasSuffix(line, "| shown by |") {
			continue
		}
		rows++
		m := fieldRow.FindStringSubmatch(line)
		if m == nil {
			faults = append(faults, "not three columns: "+line)
			continue
		}
		names := testName.FindAllString(m[1], -1)
		if len(names) == 0 {
			faults = append(faults, "no test: "+line)
		}
		for _, name := range names {
			if !tests[name] {
				faults = append(faults, fmt.Sprintf("%s does not exist: %s", name, line))
			}
		}
	}
	if rows == 0 {
		faults = append(faults, "there are no rows")
	}
	return faults
}
