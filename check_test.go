package main

import (
	"strings"
	"testing"
)

// TestSEC24OldRunc: a runc that is known to let containers out is named by `cribox check`, in every series that was repaired.
func TestSEC24OldRunc(t *testing.T) {
	for version, want := range map[string]string{
		"1.0.3": "CVE-2025-31133", "1.1.15": "CVE-2025-31133", "1.2.7": "CVE-2025-31133", "1.3.0": "CVE-2025-31133", "1.3.2": "CVE-2025-31133",
		"1.2.8": "CVE-2026-41579", "1.2.99": "CVE-2026-41579", "1.3.3": "CVE-2026-41579", "1.3.5": "CVE-2026-41579", "1.4.0": "CVE-2026-41579", "1.4.2": "CVE-2026-41579",
		"1.3.6": "", "1.3.10": "", "1.4.3": "", "1.5.0": "", "1.5.2": "", "1.6.0": "", "2.0.0": "",
	} {
		got := runcFlaw([]byte("runc version " + version + "\ncommit: v" + version + "\nspec: 1.3.0\n"))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("runc %s: %q, want %q", version, got, want)
		}
	}
	if got := runcFlaw([]byte("crun version 1.0\n")); got != "" {
		t.Errorf("another runtime: %q", got)
	}
}

func TestCheckCgroupDriver(t *testing.T) {
	for _, row := range []struct {
		asked  string
		runs   bool
		what   string
		remedy string
		fatal  bool
	}{
		{"auto", true, "systemd", "", false}, {"auto", false, "cgroupfs", "", false}, {"systemd", false, "no systemd", "cgroup_driver is systemd", true},
		{"cgroupfs", true, "cgroupfs", "owns the cgroups", false}, {"cgroupfs", false, "cgroupfs", "", false},
	} {
		c := defaultConfig()
		c.CgroupDriver = row.asked
		f := lookDriver(c, row.runs)
		if !strings.Contains(f.what, row.what) || !strings.Contains(f.remedy, row.remedy) || (row.remedy == "") != (f.remedy == "") || f.fatal != row.fatal {
			t.Errorf("%+v: %+v", row, f)
		}
	}
}
