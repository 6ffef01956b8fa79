package helper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogIsBounded: a log that is written all the time does not fill the state folder.
func TestLogIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(t, err)
	defer f.Close()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	for range 1000 {
		_, err := boundedLog{f}.Write(line)
		must(t, err)
	}
	st, err := os.Stat(name)
	must(t, err)
	if st.Size() > mostLog+2048 || st.Size() == 0 {
		t.Errorf("the log has %d bytes", st.Size())
	}
}

// TestBuildOf: a Go program is identified by its linker's build id, whatever its file name; any
// other file by its metadata.
func TestBuildOf(t *testing.T) {
	me := BuildOf("/proc/self/exe")
	if me == "" || BuildOf("/proc/self/exe") != me {
		t.Errorf("build %q", me)
	}
	copied, script := filepath.Join(t.TempDir(), "copy"), filepath.Join(t.TempDir(), "script")
	raw, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(copied, raw[:1<<20], 0o600))
	if got := BuildOf(copied); got != me {
		t.Errorf("a copy has build %q, want %q", got, me)
	}
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600))
	if got := BuildOf(script); got == "" || got == me {
		t.Errorf("a script has build %q", got)
	}
	if got := BuildOf(script + "x"); got != "" {
		t.Errorf("no file has build %q", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
