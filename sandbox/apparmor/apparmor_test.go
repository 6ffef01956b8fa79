package apparmor

import (
	"strings"
	"testing"
)

func TestIsLoaded(t *testing.T) {
	const list = "/usr/sbin/tcpdump (enforce)\ncribox-default (enforce)\nwith space (complain)\nouter//hat (enforce)\n"
	for name, want := range map[string]bool{
		"cribox-default": true, "/usr/sbin/tcpdump": true, "with space": true, "outer//hat": true,
		"cribox-default//&with space": true, "cribox-default//&other": false,
		"cribox": false, "cribox-default (enforce)": false, "": false, "with": false,
	} {
		if got := isLoaded(list, name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestProfileOf(t *testing.T) {
	for current, want := range map[string]string{
		"unconfined\n": "", "unconfined": "", "cribox (enforce)\n": "cribox", "/usr/bin/a b (complain)\x00": "/usr/bin/a b", "": "", "a\"b (enforce)": "",
	} {
		if got := profileOf(current); got != want {
			t.Errorf("%q: %q, want %q", current, got, want)
		}
	}
}

// TestText: the profile needs nothing of the host, and lets the daemon's own profile end its
// processes.
func TestText(t *testing.T) {
	text := Text("my daemon")
	for _, want := range []string{"profile cribox-default ", `signal (receive) peer="my daemon",`, "deny mount,", "deny /proc/sysrq-trigger rwklx,"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	for _, not := range []string{"@{", "#include", "include "} {
		if strings.Contains(text, not) {
			t.Errorf("%s in\n%s", not, text)
		}
	}
	if strings.Contains(Text(""), `peer="`) {
		t.Error("a daemon that is not confined has a rule")
	}
}

func TestTailIsBounded(t *testing.T) {
	var said tail
	for range 100 {
		if n, err := said.Write([]byte(strings.Repeat("x", 100))); n != 100 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := said.Write([]byte("the end")); err != nil || len(said) != mostSaid || !strings.HasSuffix(string(said), "x the end"[2:]) {
		t.Errorf("%d bytes, %v: %s", len(said), err, said)
	}
}
