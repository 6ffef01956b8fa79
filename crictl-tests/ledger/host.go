package ledger

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
)

// mounts are those of the host, where the counting process lives, and, where it has its own mount
// namespace, of every process of ours.
func mounts(s Scope) ([]string, error) {
	out, seen := []string{}, map[string]bool{}
	pids, err := ourProcesses(s)
	if err != nil {
		return nil, err
	}
	for _, pid := range append([]int{os.Getpid()}, pids...) {
		namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[namespace] {
			continue
		}
		seen[namespace] = true
		lines, err := mountsOf(s, pid)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return out, nil
}

func mountsOf(s Scope, pid int) ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 7 || !s.owns(fields[4]) {
			continue
		}
		_, tail, _ := strings.Cut(line, " - ")
		kind, _, _ := strings.Cut(tail, " ")
		out = append(out, fields[4]+" "+kind)
	}
	return out, nil
}

func netns(s Scope) ([]string, error) {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if s.owns(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// links are ours when their name or alias carries a mark, or when they hang on such a link.
func links(s Scope) ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	ours := map[int]bool{}
	for _, l := range all {
		ours[l.Attrs().Index] = s.owns(l.Attrs().Name) || s.owns(l.Attrs().Alias)
	}
	var out []string
	for _, l := range all {
		a := l.Attrs()
		if ours[a.Index] || ours[a.MasterIndex] {
			out = append(out, l.Type()+" "+a.Name)
		}
	}
	return out, nil
}

// leases are the addresses that host-local has written down: files with an address for a name.
func leases(s Scope) ([]string, error) {
	var out []string
	for _, folder := range []string{s.State, s.Root, "/var/lib/cni/networks"} {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return skipGone(err)
			}
			if d.Type().IsRegular() && isAddress.MatchString(d.Name()) && s.owns(path) {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

var isAddress = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$|^[0-9a-f]*:[0-9a-f:]+$`)

// rules are the lines of iptables and nftables that carry a mark, in their comments or names.
func rules(s Scope) ([]string, error) {
	var out []string
	for _, ask := range [][]string{{"iptables-save"}, {"ip6tables-save"}, {"nft", "list", "ruleset"}} {
		path, err := exec.LookPath(ask[0])
		if err != nil {
			continue // no such firewall on this host, so no rule either
		}
		text, err := exec.Command(path, ask[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(ask, " "), err)
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); s.owns(line) {
				out = append(out, ask[0]+": "+line)
			}
		}
	}
	return out, nil
}

// cgroups are the folders of every controller, and of the unified hierarchy, whose path carries a mark.
func cgroups(s Scope) ([]string, error) {
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return skipGone(err)
		}
		if d.IsDir() && s.owns(path) {
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

// units are those of systemd that were made by a request and whose name carries a mark. One that has
// failed stays when its cgroup is gone.
func units(s Scope) ([]string, error) {
	entries, err := os.ReadDir("/run/systemd/transient")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && s.owns(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// files are everything under root and state, but no further than a mount: what a container wrote is its own business.
func files(s Scope) ([]string, error) {
	mounted, err := mountpoints()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, folder := range []string{s.Root, s.State} {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return skipGone(err)
			}
			if path == filepath.Join(s.State, "filters") {
				return filepath.SkipDir // a cache: one small file for each seccomp profile, at most 32
			}
			out = append(out, path)
			if d.IsDir() && path != folder && mounted[path] {
				return filepath.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func mountpoints() (map[string]bool, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			out[fields[4]] = true
		}
	}
	return out, nil
}

func skipGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}
