package preflight

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/config"
)

// TestSEC24OldRunc checks that `cribox check` reports versions of runc that let containers escape,
// in every release series that got a fix.
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

// TestSEC67OldPlugins checks that `cribox check` reports CNI plugins with a known flaw.
func TestSEC67OldPlugins(t *testing.T) {
	for says, want := range map[string]string{
		"CNI bridge plugin v0.8.5\n": "CVE-2020-10749", "CNI bridge plugin v0.8.6": "", "CNI bridge plugin v1.9.1\nCNI protocol versions supported: 1.1.0\n": "",
		"CNI portmap plugin v1.8.0\n": "CVE-2025-67499", "CNI portmap plugin v1.9.0": "", "CNI portmap plugin version unknown": "", "CNI ptp plugin v0.8.0": "CVE-2020-10749",
		"": "", "CNI host-local plugin v0.1.0": "",
	} {
		plugin := "portmap"
		if f := strings.Fields(says); len(f) > 1 {
			plugin = f[1]
		}
		if got := pluginFlaw(plugin, []byte(says)); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", says, got, want)
		}
	}
	dir := t.TempDir()
	for plugin, version := range map[string]string{"portmap": "v1.8.0", "bridge": "v1.9.1"} {
		script := "#!/bin/sh\n[ -z \"$CNI_COMMAND\" ] && echo 'CNI " + plugin + " plugin " + version + "' >&2\n"
		if err := os.WriteFile(filepath.Join(dir, plugin), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	found := lookPlugins(t.Context(), []string{filepath.Join(dir, "none"), dir})
	if len(found) != 1 || !strings.Contains(found[0].What, "portmap plugin v1.8.0") || !strings.Contains(found[0].Remedy, "1.9.0") || found[0].Fatal {
		t.Errorf("found %+v", found)
	}
}

// TestCheckAdvertisements checks that the uplinks are reported that would lose their router once
// pods use IPv6.
func TestCheckAdvertisements(t *testing.T) {
	deaf := func() ([]string, error) { return []string{"eth0", "eth0.5"}, nil }
	if found := lookAdvertisements(false, deaf); len(found) > 0 {
		t.Errorf("nobody forwards: %+v", found)
	}
	found := lookAdvertisements(true, deaf)
	if len(found) != 2 || found[0].Fatal || !strings.Contains(found[0].Remedy, "net.ipv6.conf.eth0.accept_ra=2") || !strings.Contains(found[1].Remedy, "net.ipv6.conf.eth0/5.accept_ra=2") {
		t.Errorf("found %+v", found)
	}
	found = lookAdvertisements(true, func() ([]string, error) { return nil, errors.New("no answer") })
	if len(found) != 1 || !strings.Contains(found[0].What, "no answer") || found[0].Remedy == "" {
		t.Errorf("found %+v", found)
	}
	if !ipv6Pods(config.Config{Network: config.Network{Subnet: "10.1.0.0/16,fd00::/64"}}) {
		t.Error("an IPv6 subnet does not count")
	}
}

// TestCheckDefaultNetwork: the default network needs plugins only on a kernel without nftables.
func TestCheckDefaultNetwork(t *testing.T) {
	if f := lookDefault(nil, nil); len(f) != 1 || f[0].Remedy != "" || f[0].Fatal {
		t.Errorf("with nftables: %+v", f)
	}
	f := lookDefault([]string{t.TempDir()}, errors.New("no such file"))
	if len(f) != 4 || f[0].Fatal || !strings.Contains(f[0].What, "no such file") || !f[1].Fatal || !strings.Contains(f[1].What, "bridge") {
		t.Errorf("without: %+v", f)
	}
}

// TestCheckPodCIDR checks that a check beside a running daemon uses the pod CIDR that the kubelet
// set.
func TestCheckPodCIDR(t *testing.T) {
	plugins, err := filepath.Abs(filepath.Join("..", "bin", "cni"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(plugins); err != nil {
		t.Skip(err)
	}
	c := config.Default()
	c.State, c.Network.ConfDir, c.Network.BinDirs = t.TempDir(), t.TempDir(), []string{plugins}
	c.Network.Default, c.Network.Subnet = true, cni.PodCIDR
	if err := networkReady(t.Context(), c); err == nil || !strings.Contains(err.Error(), "has not set the pod CIDR") {
		t.Error(err)
	}
	named := cni.PodCIDRFile(c.State)
	if err := errors.Join(os.MkdirAll(filepath.Dir(named), 0o700), os.WriteFile(named, []byte("10.199.87.0/24\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := networkReady(t.Context(), c); err != nil {
		t.Error(err)
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
		{"auto", true, "systemd", "", false}, {"auto", false, "cgroupfs", "", false}, {"systemd", false, "systemd is not running", "cgroup_driver is systemd", true},
		{"cgroupfs", true, "cgroupfs", "owns the cgroups", false}, {"cgroupfs", false, "cgroupfs", "", false},
	} {
		c := config.Default()
		c.CgroupDriver = row.asked
		f := lookDriver(c, row.runs)
		if !strings.Contains(f.What, row.what) || !strings.Contains(f.Remedy, row.remedy) || (row.remedy == "") != (f.Remedy == "") || f.Fatal != row.fatal {
			t.Errorf("%+v: %+v", row, f)
		}
	}
}

func TestCheckAppArmor(t *testing.T) {
	if f := appArmorFinding("/usr/sbin/apparmor_parser", nil); f.Remedy != "" || f.Fatal || !strings.Contains(f.What, "/usr/sbin/apparmor_parser") {
		t.Errorf("with a parser: %+v", f)
	}
	if f := appArmorFinding("", errors.New("none")); f.Fatal || !strings.Contains(f.Remedy, "package apparmor") {
		t.Errorf("without a parser: %+v", f)
	}
}
