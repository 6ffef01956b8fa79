package spec

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxName in bytes: a Kubernetes name, and with a prefix still a file name.
	maxName = 253
	// maxPath is PATH_MAX, maxPart NAME_MAX.
	maxPath = 4096
	maxPart = 255
	// maxHostname is what sethostname(2) takes.
	maxHostname = 64
)

// invalid is the error for a field of a request. It begins with the field's name.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// truncate keeps hostile text from filling the log.
func truncate(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// control: what ends a line, a string or a terminal's patience.
func control(r rune) bool { return r < 0x20 || r == 0x7f }

// checkText wants something short, printable, not empty.
func checkText(field, s string, limit int) error {
	switch {
	case s == "":
		return invalid(field, "is empty")
	case len(s) > limit:
		return invalid(field, "is %d bytes long, at most %d are taken", len(s), limit)
	case strings.ContainsFunc(s, control):
		return invalid(field, "%q holds a control character", truncate(s))
	}
	return nil
}

// checkName wants what can be one part of a path, whatever is put around it.
func checkName(field, s string) error {
	if err := checkText(field, s, maxName); err != nil {
		return err
	}
	if strings.ContainsRune(s, '/') || s == "." || s == ".." {
		return invalid(field, "%q cannot be part of a path", truncate(s))
	}
	return nil
}

// checkPath wants a path that stays where it begins.
func checkPath(field, s string) error {
	if err := checkText(field, s, maxPath); err != nil {
		return err
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return invalid(field, "%q goes up", truncate(s))
		}
		if len(part) > maxPart {
			return invalid(field, "%q is %d bytes long, a file system takes %d", truncate(part), len(part), maxPart)
		}
	}
	return nil
}

func checkAbsolute(field, s string) error {
	if err := checkPath(field, s); err != nil {
		return err
	}
	if !path.IsAbs(s) {
		return invalid(field, "%q is not absolute", truncate(s))
	}
	return nil
}

// checkContainerPath wants an absolute path; ".." in it is harmless, it is
// resolved below the container's root.
func checkContainerPath(field, s string) error {
	if err := checkText(field, s, maxPath); err != nil {
		return err
	}
	if !path.IsAbs(s) {
		return invalid(field, "%q is not absolute", truncate(s))
	}
	return nil
}

// checkHostPath refuses paths that mean something else to every process that
// opens them: our own descriptors, another process's root.
func checkHostPath(field, s string) error {
	if err := checkAbsolute(field, s); err != nil {
		return err
	}
	parts := strings.Split(strings.TrimPrefix(path.Clean(s), "/"), "/")
	switch {
	case len(parts) >= 2 && parts[0] == "proc" && (parts[1] == "self" || parts[1] == "thread-self"),
		len(parts) >= 3 && parts[0] == "proc" && number.MatchString(parts[1]) && slices.Contains(magicLinks, parts[2]),
		len(parts) >= 2 && parts[0] == "dev" && (parts[1] == "fd" || parts[1] == "stdin" || parts[1] == "stdout" || parts[1] == "stderr"):
		return invalid(field, "%q leads into a process", truncate(s))
	}
	return nil
}

var magicLinks = []string{"cwd", "exe", "fd", "map_files", "root", "task"}

// checkStrings wants what can be handed to execve(2).
func checkStrings(field string, list []string) error {
	for i, s := range list {
		if strings.ContainsRune(s, 0) {
			return invalid(field, "number %d holds a NUL byte", i)
		}
	}
	return nil
}

func contains[T comparable](list []T, v T) bool { return slices.Contains(list, v) }

// clone is a deep copy of something that is made of what JSON has.
func clone[T any](v *T) *T {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types only
	}
	out := new(T)
	if err := json.Unmarshal(data, out); err != nil {
		panic(err)
	}
	return out
}
