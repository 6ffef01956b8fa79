package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

// table is a table of the configuration file. The first one has no name.
type table struct {
	name, doc string
	keys      []key
}

type key struct{ name, value, doc string }

// parse reads a printed configuration, in which the line above a key or a table is its
// documentation.
func parse(printed []byte) []table {
	tables := []table{{}}
	doc := ""
	for line := range strings.Lines(string(printed)) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "# "); ok {
			doc = text
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			tables = append(tables, table{name: strings.TrimSuffix(name, "]"), doc: doc})
		} else if name, value, ok := strings.Cut(line, " = "); ok {
			last := &tables[len(tables)-1]
			last.keys = append(last.keys, key{name, value, doc})
		}
		doc = ""
	}
	return tables
}

// configFile returns a configuration file that says nothing: each key is in a comment, with its
// default.
func configFile(tables []table) []byte {
	var b bytes.Buffer
	b.WriteString(`# The configuration of cribox; cribox-config.toml(5). A key in a comment has its default.
# To change one, remove the # before it, or write it into a file of its own in config.toml.d, which
# wins over this one. "cribox config" prints what is in effect.
`)
	for _, t := range tables {
		b.WriteByte('\n')
		comment(&b, t.doc)
		switch {
		case strings.HasPrefix(t.name, "runtimes"):
			// An empty table of a runtime would be a runtime without a path.
			fmt.Fprintf(&b, "#[%s]\n", t.name)
		case t.name != "":
			fmt.Fprintf(&b, "[%s]\n", t.name)
		}
		for _, k := range t.keys {
			comment(&b, k.doc)
			fmt.Fprintf(&b, "#%s = %s\n", k.name, k.value)
		}
	}
	return b.Bytes()
}

// comment writes the text in lines of at most 100 columns.
func comment(b *bytes.Buffer, text string) {
	line := "#"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > 100 {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		b.WriteString(line + "\n")
	}
}

// configPage returns the manual page of the configuration file.
func configPage(tables []table, version string, date time.Time) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%% \"CRIBOX-CONFIG.TOML\" \"5\" %q \"cribox %s\" \"cribox\"\n", date.Format("Jan 2006"), version)
	b.WriteString(`# NAME
cribox-config.toml - configuration of cribox

# SYNOPSIS
/etc/cribox/config.toml, /etc/cribox/config.toml.d/\*.toml

# DESCRIPTION
cribox reads one TOML file, and over it the files of the folder beside it in the order of their
names. For each key the last one wins. None of the files need exist. An unknown key or a wrong value
is an error with the file, the line and the key, and the daemon does not start.

**cribox config** prints what is in effect. SIGHUP makes the daemon read the files again; its log
names the changed keys that need a restart.

`)
	for _, t := range tables {
		head := "KEYS OUTSIDE OF TABLES"
		if t.name != "" {
			head = "TABLE [" + t.name + "]"
		}
		fmt.Fprintf(&b, "# %s\n", markdown(head))
		fmt.Fprintf(&b, "%s\n\n", markdown(t.doc))
		for _, k := range t.keys {
			fmt.Fprintf(&b, "**%s** = `%s`\n: %s\n\n", markdown(k.name), k.value, markdown(k.doc))
		}
	}
	b.WriteString("# SEE ALSO\n**cribox(8)**, **cribox-config(8)**, **cribox-serve(8)**\n")
	return md2man.Render(b.Bytes())
}

// markdown returns text in which nothing has a meaning in Markdown.
func markdown(text string) string {
	return strings.NewReplacer(`*`, `\*`, `_`, `\_`, `[`, `\[`, `]`, `\]`, "`", "\\`", `<`, `\<`).Replace(text)
}
