package preflight

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pluginVersion matches the version that a plugin of the CNI project prints when it is run without
// CNI_COMMAND.
var pluginVersion = regexp.MustCompile(`(?m)^CNI (\S+) plugin v?(\d+)\.(\d+)\.(\d+)`)

// pluginFloors has, for plugins of the CNI project, the first version without a known flaw that
// pods can exploit.
var pluginFloors = map[string]struct {
	version [3]int
	flaw    string
}{
	"bridge":  {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"ipvlan":  {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"macvlan": {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"ptp":     {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"portmap": {[3]int{1, 9, 0}, "with its nftables backend, a pod's host port intercepts connections to other " +
		"destinations (CVE-2025-67499)"},
}

// lookPlugins returns a finding for each plugin with a known flaw. It ignores plugins that print no
// version.
func lookPlugins(ctx context.Context, dirs []string) []Finding {
	var all []Finding
	for _, plugin := range slices.Sorted(maps.Keys(pluginFloors)) {
		for _, dir := range dirs {
			path := filepath.Join(dir, plugin)
			if !hasPlugin([]string{dir}, plugin) {
				continue
			}
			cmd := exec.CommandContext(ctx, path)
			cmd.Env, cmd.WaitDelay = []string{}, time.Second // without CNI_COMMAND a plugin prints its version
			says, _ := cmd.CombinedOutput()                  // the exit status does not matter
			if flaw := pluginFlaw(plugin, says); flaw != "" {
				what, _, _ := strings.Cut(string(says), "\n")
				all = append(all, Finding{What: what + " (" + path + ")", Remedy: flaw})
			}
			break // the daemon uses only the first folder that has the plugin
		}
	}
	return all
}

// pluginFlaw returns the known flaw of a plugin that prints says, and the remedy; "" if none is
// known.
func pluginFlaw(plugin string, says []byte) string {
	floor, known := pluginFloors[plugin]
	m := pluginVersion.FindSubmatch(says)
	if m == nil || !known || string(m[1]) != plugin {
		return ""
	}
	var have [3]int
	for i := range have {
		have[i], _ = strconv.Atoi(string(m[i+2])) // the pattern matches only digits
	}
	if slices.Compare(have[:], floor.version[:]) >= 0 {
		return ""
	}
	return fmt.Sprintf("%s; install the CNI plugins %d.%d.%d or newer",
		floor.flaw, floor.version[0], floor.version[1], floor.version[2])
}

func hasPlugin(dirs []string, name string) bool {
	for _, d := range dirs {
		if info, err := os.Stat(filepath.Join(d, name)); err == nil && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}
