package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// rows is the number of attacks listed in docs/security.md.
const rows = 84

var (
	tableRow = regexp.MustCompile(`(?m)^\| SEC-(\d\d) \| [^|]+ \| (tested: |n/a: |open: )([^|]+) \|$`)
	testName = regexp.MustCompile(`\bTest[A-Z]\w*`)
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Z]\w*)\(\w+ \*testing\.T\)`)
	rowTest  = regexp.MustCompile(`^TestSEC(\d\d)`)
)

// TestSecurityTable checks that every row occurs once, that every test in a row exists, and that
// every test named after a row is in it.
func TestSecurityTable(t *testing.T) {
	doc, err := os.ReadFile("docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := allTests(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, complaint := range tableFaults(string(doc), tests) {
		t.Error(complaint)
	}
}

// TestBoundsTable checks that every row of the table of bounds names existing tests.
func TestBoundsTable(t *testing.T) {
	doc, err := os.ReadFile("docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := allTests(".")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "| what | where | bound | tests |\n|---|---|---|---|\n")
	if !ok {
		t.Fatal("docs/security.md has no table of bounds")
	}
	for row := range strings.Lines(table) {
		if !strings.HasPrefix(row, "|") {
			break
		}
		names := testName.FindAllString(row, -1)
		if len(names) == 0 {
			t.Errorf("no test: %s", row)
		}
		for _, name := range names {
			if !tests[name] {
				t.Errorf("%s does not exist: %s", name, row)
			}
		}
	}
}

// TestSecurityTableIsHeld checks that TestSecurityTable would find faults.
func TestSecurityTableIsHeld(t *testing.T) {
	tests := map[string]bool{"TestSEC01A": true, "TestOther": true}
	var good strings.Builder
	for n := range rows {
		fmt.Fprintf(&good, "| SEC-%02d | a trick | n/a: not here |\n", n+1)
	}
	table := strings.Replace(good.String(), "| SEC-01 | a trick | n/a: not here |", "| SEC-01 | a trick | tested: TestSEC01A, TestOther |", 1)
	if faults := tableFaults(table, tests); len(faults) > 0 {
		t.Errorf("a good table: %v", faults)
	}
	for name, bad := range map[string]string{
		"a row is missing":     strings.Replace(table, "SEC-33", "SEC-333", 1),
		"a row is there twice": table + "| SEC-05 | a trick | open: all |\n",
		"one too many":         table + "| SEC-80 | a trick | open: all |\n",
		"no such test":         strings.Replace(table, "TestOther", "TestNowhere", 1),
		"a test is not named":  strings.Replace(table, "TestSEC01A, ", "", 1),
		"named by another":     strings.Replace(strings.Replace(table, "TestSEC01A, ", "", 1), "not here", "see TestSEC01A", 1),
		"tested by nothing":    strings.Replace(table, "TestSEC01A, TestOther", "somehow", 1),
	} {
		if len(tableFaults(bad, tests)) == 0 {
			t.Errorf("%s, and nothing is said", name)
		}
	}
}

func tableFaults(doc string, tests map[string]bool) (faults []string) {
	seen, named := map[string]int{}, map[string]bool{}
	for _, m := range tableRow.FindAllStringSubmatch(doc, -1) {
		row, state, words := m[1], m[2], m[3]
		seen[row]++
		names := testName.FindAllString(words, -1)
		if state == "tested: " && len(names) == 0 {
			faults = append(faults, "SEC-"+row+" is tested and names no test")
		}
		for _, name := range names {
			if !tests[name] {
				faults = append(faults, "SEC-"+row+" names "+name+", which does not exist")
			}
			if r := rowTest.FindStringSubmatch(name); r != nil && r[1] == row {
				named[name] = true
			}
		}
	}
	for n := range rows {
		if row := fmt.Sprintf("%02d", n+1); seen[row] != 1 {
			faults = append(faults, fmt.Sprintf("SEC-%s is there %d times", row, seen[row]))
		}
	}
	if len(seen) != rows || strings.Count(doc, "\n| SEC-")+strings.Count(doc[:min(6, len(doc))], "| SEC-") != rows {
		faults = append(faults, fmt.Sprintf("there are %d rows of the right form, want %d and no others", len(seen), rows))
	}
	for name := range tests {
		if rowTest.MatchString(name) && !named[name] {
			faults = append(faults, name+" is not named by its row")
		}
	}
	return faults
}

// allTests returns the names of the test functions in all packages and modules below dir, except in
// bin.
func allTests(dir string) (map[string]bool, error) {
	all := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && e.Name() == "bin" {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			all[m[1]] = true
		}
		return err
	})
	return all, err
}
