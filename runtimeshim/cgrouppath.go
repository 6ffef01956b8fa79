package runtimeshim

import (
	"path/filepath"
	"strings"
)

// CgroupOf returns the path, below the cgroup mounts, of the cgroup that a spec's linux.cgroupsPath
// names. In systemd's form SLICE:PREFIX:NAME that is the scope PREFIX-NAME in the slice; the slice
// a-b.slice is inside a.slice, and -.slice is the root. Returns "" when the value is neither in
// that form nor an absolute path.
func CgroupOf(cgroupsPath string) string {
	if filepath.IsAbs(cgroupsPath) {
		return filepath.Clean(cgroupsPath)
	}
	part := strings.Split(cgroupsPath, ":")
	if len(part) != 3 || strings.Contains(cgroupsPath, "/") || part[1] == "" || part[2] == "" {
		return ""
	}
	slice, ok := expandSlice(part[0])
	if !ok {
		return ""
	}
	return filepath.Join(slice, part[1]+"-"+part[2]+".scope")
}

// expandSlice returns the path of a slice, as defined in systemd.slice(5).
func expandSlice(name string) (path string, ok bool) {
	bare, ok := strings.CutSuffix(name, ".slice")
	if !ok || bare == "" {
		return "", false
	}
	if bare == "-" {
		return "/", true
	}
	path, whole := "/", ""
	for i, part := range strings.Split(bare, "-") {
		if part == "" {
			return "", false
		}
		if i > 0 {
			whole += "-"
		}
		whole += part
		path = filepath.Join(path, whole+".slice")
	}
	return path, true
}
