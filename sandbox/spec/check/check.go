// Package check says whether one field of a request can be used. It refuses a field with an error
// that begins with the field's name, or notes what had to be changed; it reads nothing.
package check

import (
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// MaxName is the length in bytes of a Kubernetes name; with a prefix it is still a file name.
	MaxName = 253
	// MaxPath is PATH_MAX, maxPart is NAME_MAX.
	MaxPath = 4096
	maxPart = 255
	// MaxID is the highest user or group id. All programs read a number of 31 bits in the same way.
	MaxID = math.MaxInt32
)

// Note is one field that could not be used as it was given.
type Note struct {
	// Field of the request, as the CRI names it.
	Field string
	// Text says what was done instead.
	Text string
}

func (n Note) String() string { return n.Field + " " + n.Text }

// Notef returns a note about a field.
func Notef(field, format string, args ...any) Note {
	return Note{Field: field, Text: fmt.Sprintf(format, args...)}
}

// Invalid is the error for a field of a request. It begins with the field's name.
func Invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// Truncate keeps a long text of a request from filling the log.
func Truncate(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// IsControl is true for characters that end a line or a string, or control a terminal.
func IsControl(r rune) bool { return r < 0x20 || r == 0x7f }

var digits = regexp.MustCompile(`^[0-9]+$`)

// IsNumber is true for a text of digits and nothing else.
func IsNumber(s string) bool { return digits.MatchString(s) }

// ID refuses a user or group id that is negative or larger than MaxID.
func ID(field string, n int64) error {
	if n < 0 || n > MaxID {
		return Invalid(field, "%d is not between 0 and %d", n, MaxID)
	}
	return nil
}

// Text refuses a text that is empty, longer than limit, or has a control character.
func Text(field, s string, limit int) error {
	switch {
	case s == "":
		return Invalid(field, "is empty")
	case len(s) > limit:
		return Invalid(field, "is %d bytes long; the limit is %d", len(s), limit)
	case strings.ContainsFunc(s, IsControl):
		return Invalid(field, "%q contains a control character", Truncate(s))
	}
	return nil
}

// Name refuses what cannot be one part of a path.
func Name(field, s string) error {
	if err := Text(field, s, MaxName); err != nil {
		return err
	}
	if strings.ContainsRune(s, '/') || s == "." || s == ".." {
		return Invalid(field, "%q cannot be part of a path", Truncate(s))
	}
	return nil
}

// Path refuses a path with "..", which could lead out of the folder it is joined to.
func Path(field, s string) error {
	if err := Text(field, s, MaxPath); err != nil {
		return err
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return Invalid(field, "%q contains \"..\"", Truncate(s))
		}
		if len(part) > maxPart {
			return Invalid(field, "%q is %d bytes long; the limit of a file name is %d", Truncate(part), len(part), maxPart)
		}
	}
	return nil
}

// Absolute is Path for absolute paths only.
func Absolute(field, s string) error {
	if err := Path(field, s); err != nil {
		return err
	}
	return absolute(field, s)
}

// ContainerPath wants an absolute path. ".." is harmless in it: it is resolved below the root of
// the container.
func ContainerPath(field, s string) error {
	if err := Text(field, s, MaxPath); err != nil {
		return err
	}
	return absolute(field, s)
}

func absolute(field, s string) error {
	if !path.IsAbs(s) {
		return Invalid(field, "%q is not an absolute path", Truncate(s))
	}
	return nil
}

// HostPath refuses paths that mean something else to every process that opens them: the process's
// own descriptors, or the root of another process.
func HostPath(field, s string) error {
	if err := Absolute(field, s); err != nil {
		return err
	}
	parts := strings.Split(strings.TrimPrefix(path.Clean(s), "/"), "/")
	switch {
	case len(parts) >= 2 && parts[0] == "proc" && (parts[1] == "self" || parts[1] == "thread-self"),
		len(parts) >= 3 && parts[0] == "proc" && IsNumber(parts[1]) && slices.Contains(magicLinks, parts[2]),
		len(parts) >= 2 && parts[0] == "dev" &&
			(parts[1] == "fd" || parts[1] == "stdin" || parts[1] == "stdout" || parts[1] == "stderr"):
		return Invalid(field, "%q belongs to a process and means something else to every process", Truncate(s))
	}
	return nil
}

var magicLinks = []string{"cwd", "exe", "fd", "map_files", "root", "task"}

// Strings refuses a list that execve(2) cannot take.
func Strings(field string, list []string) error {
	for i, s := range list {
		if strings.ContainsRune(s, 0) {
			return Invalid(field, "item %d contains a NUL byte", i)
		}
	}
	return nil
}
