package oci

import (
	"regexp"
	"slices"
	"strconv"
)

// runcFlaws are known bugs of older runc versions that let a container affect the host, the worst
// first, each with the first fixed version of every series. A series that is not listed has the
// state of the next older one that is.
var runcFlaws = []struct {
	what  string
	fixed [][3]int
}{
	{"containers can escape it (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)",
		[][3]int{{1, 2, 8}, {1, 3, 3}, {1, 4, 0}}},
	{"an image with a linked /dev can change names on the host (CVE-2026-41579)",
		[][3]int{{1, 3, 6}, {1, 4, 3}, {1, 5, 0}}},
}

var versionNumbers = regexp.MustCompile(`^v?(\d+)\.(\d+)\.(\d+)`)

// firstNative is the oldest runc of which package place does exactly the same. Older ones pass their
// own CPU affinity on.
var firstNative = [3]int{1, 3, 1}

// runcSince reports whether a version of runc is not older than another.
func runcSince(version string, first [3]int) bool {
	have, ok := numbersOf(version)
	return ok && slices.Compare(have[:], first[:]) >= 0
}

// numbersOf reads a version.
func numbersOf(version string) (have [3]int, ok bool) {
	m := versionNumbers.FindStringSubmatch(version)
	if m == nil {
		return have, false
	}
	for i := range have {
		have[i], _ = strconv.Atoi(m[i+1]) // only digits
	}
	return have, true
}

// RuncFlaw returns the worst known bug of a version of runc; "" when there is none, or version is
// not a version.
func RuncFlaw(version string) string {
	have, ok := numbersOf(version)
	if !ok {
		return ""
	}
	for _, flaw := range runcFlaws {
		if !hasFix(have, flaw.fixed) {
			return flaw.what
		}
	}
	return ""
}

// hasFix reports whether have is not older than the first fixed version of its own series, or is of
// a newer series than a fixed one.
func hasFix(have [3]int, fixed [][3]int) bool {
	for i := len(fixed) - 1; i >= 0; i-- {
		switch series := slices.Compare(have[:2], fixed[i][:2]); {
		case series > 0:
			return true
		case series == 0:
			return have[2] >= fixed[i][2]
		}
	}
	return false
}
