package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// undecided are the rows of docs/cri.md that may be open, as "Message.field" or "Service.Request".
var undecided = []string{}

// TestCRITable checks that docs/cri.md has a row for every request of the CRI and for every field
// of requests and responses, and no other rows, and that each row names existing tests. With a
// newer CRI it fails until the new fields have rows.
func TestCRITable(t *testing.T) {
	doc, err := os.ReadFile("docs/cri.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := allTests(".")
	if err != nil {
		t.Fatal(err)
	}
	want, err := criRows("runtime.v1.RuntimeService", "runtime.v1.ImageService")
	if err != nil {
		t.Fatal(err)
	}
	for _, complaint := range criFaults(string(doc), want, tests, undecided) {
		t.Error(complaint)
	}
}

// TestCRITableIsHeld checks that TestCRITable would find faults.
func TestCRITableIsHeld(t *testing.T) {
	want := map[string][]string{"Service": {"Ask"}, "AskRequest": {"id", "name"}, "WindowsThing": {"a", "b"}}
	tests := map[string]bool{"TestA": true, "TestB": true}
	const good = "# CRI\n\n### Service\n\n| request | what cribox does | shown by |\n|---|---|---|\n| Ask | asks | TestA |\n\n## Fields\n\n### AskRequest\n\n" +
		"| field | what cribox does | shown by |\n|---|---|---|\n| id | finds it | TestA, TestB |\n| name | open | |\n\n" +
		"### WindowsThing\n\n| field | what cribox does | shown by |\n|---|---|---|\n| * | refuses it | TestB |\n"
	if faults := criFaults(good, want, tests, []string{"AskRequest.name"}); len(faults) > 0 {
		t.Errorf("a good table: %v", faults)
	}
	for name, change := range map[string][2]string{
		"a section is missing":       {"### AskRequest", "## AskRequest"},
		"a section is of nothing":    {"### AskRequest", "### Nothing\n\n### AskRequest"},
		"a section is there twice":   {"### AskRequest", "### AskRequest\n\n### AskRequest"},
		"a request has no row":       {"| Ask | asks | TestA |\n", ""},
		"a field has no row":         {"| id | finds it | TestA, TestB |\n", ""},
		"a row is of no field":       {"| name |", "| surname |\n| name |"},
		"a row is there twice":       {"| name |", "| id | finds it | TestA |\n| name |"},
		"a row outside a section":    {"## Fields\n", "## Fields\n\n| id | finds it | TestA |\n"},
		"a star for a Linux message": {"| id | finds it | TestA, TestB |\n| name | open | |", "| * | does it all | TestA |"},
		"a row says nothing":         {"finds it", ""},
		"a row names no test":        {"TestA, TestB", ""},
		"a row names words":          {"TestA, TestB", "TestA and others"},
		"no such test":               {"TestA, TestB", "TestA, TestC"},
		"a fourth cell":              {"TestA, TestB", "TestA | TestB"},
		"a second one is open":       {"finds it | TestA, TestB", "open | "},
		"the open one is decided":    {"| name | open | |", "| name | told | TestA |"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Errorf("%s: the table has no %q", name, change[0])
		}
		if len(criFaults(bad, want, tests, []string{"AskRequest.name"})) == 0 {
			t.Errorf("%s, and nothing is said", name)
		}
	}
	newer := map[string][]string{"Service": {"Ask", "Beg"}, "AskRequest": {"id", "name", "new"}, "WindowsThing": {"a", "b", "c"}, "BegRequest": {"id"}}
	if faults := criFaults(good, newer, tests, []string{"AskRequest.name"}); len(faults) != 3 { // not for Windows
		t.Errorf("a request, a message and a field are new, and said is: %q", faults)
	}
}

// criRows returns the requests of each service, and the fields of every message in their requests
// and responses, by the name of the service or message.
func criRows(services ...protoreflect.FullName) (map[string][]string, error) {
	rows := map[string][]string{}
	for _, name := range services {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			return nil, err
		}
		service, ok := found.(protoreflect.ServiceDescriptor)
		if !ok {
			return nil, fmt.Errorf("%s is no service", name)
		}
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			rows[string(service.Name())] = append(rows[string(service.Name())], string(m.Name()))
			addFields(rows, m.Input())
			addFields(rows, m.Output())
		}
	}
	return rows, nil
}

func addFields(rows map[string][]string, m protoreflect.MessageDescriptor) {
	if rows[string(m.Name())] != nil {
		return
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		rows[string(m.Name())] = append(rows[string(m.Name())], string(f.Name()))
		switch {
		case f.IsMap():
			if value := f.MapValue().Message(); value != nil {
				addFields(rows, value)
			}
		case f.Message() != nil:
			addFields(rows, f.Message())
		}
	}
}

// criFaults returns the differences between the sections and rows of a document and those that are
// wanted. A Windows message may have a single row, *, for all of its fields.
func criFaults(doc string, want map[string][]string, tests map[string]bool, open []string) (faults []string) {
	complain := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	seen := map[string]int{}
	section := ""
	for line := range strings.Lines(doc) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			name, isSection := strings.CutPrefix(line, "### ")
			if section = ""; !isSection {
				continue
			}
			section = name
			if seen[section]++; want[section] == nil || seen[section] > 1 {
				complain("section %s: it is there %d times, and the CRI has such a thing: %t", section, seen[section], want[section] != nil)
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.TrimSpace(cells[0]) == "field" || strings.TrimSpace(cells[0]) == "request" {
			continue
		}
		if len(cells) != 3 || section == "" {
			complain("%q is no row of a section", line)
			continue
		}
		name, what, shown := strings.TrimSpace(cells[0]), strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])
		row := section + "." + name
		all := name == "*" && strings.HasPrefix(section, "Windows")
		if seen[row]++; seen[row] > 1 || !all && !slices.Contains(want[section], name) {
			complain("%s is there %d times, and the CRI has it: %t", row, seen[row], slices.Contains(want[section], name))
		}
		faults = append(faults, rowFaults(row, what, shown, tests, slices.Contains(open, row))...)
	}
	for section, rows := range want {
		if seen[section] == 0 {
			complain("section %s is missing", section)
			continue
		}
		for _, name := range rows {
			if seen[section+"."+name] == 0 && seen[section+".*"] == 0 {
				complain("%s.%s has no row", section, name)
			}
		}
	}
	return faults
}

func rowFaults(row, what, shown string, tests map[string]bool, mayBeOpen bool) (faults []string) {
	switch isOpen := strings.HasPrefix(what, "open"); {
	case isOpen != mayBeOpen:
		return []string{fmt.Sprintf("%s is open: %t, and listed as undecided: %t", row, isOpen, mayBeOpen)}
	case isOpen:
		return nil
	case what == "":
		return []string{row + " does not say what cribox does"}
	}
	for name := range strings.SplitSeq(shown, ", ") {
		if !tests[name] {
			faults = append(faults, fmt.Sprintf("%s is shown by %q, which is no test", row, name))
		}
	}
	return faults
}
