package main

import (
	"os"
	"strings"
	"testing"
)

// TestUnit checks the settings of the systemd unit that keep containers running when the daemon
// restarts, and restart a failing daemon without limit.
func TestUnit(t *testing.T) {
	b, err := os.ReadFile("dist/cribox.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", // before systemd 253 there is no notify-reload
		"KillMode=process", "Delegate=yes", "OOMPolicy=continue", "Restart=always", "StartLimitIntervalSec=0", "TimeoutStartSec=infinity",
	} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("dist/cribox.service has no line %s", line)
		}
	}
	if command, _, _ := strings.Cut(string(b), "serve\n"); !strings.HasSuffix(command, "\nExecStart=/usr/local/bin/cribox ") {
		t.Error("dist/cribox.service does not run cribox serve")
	}
}
