package oci

import (
	"regexp"
	"slices"
	"strconv"
)

// runcFlaws are ways out of a container that older versions of runc have, the worst first, and the
// first version of each series without them. A series between or behind those named has what the
// next older one had at its end.
var runcFlaws = []struct {
	what  string
	fixed [][3]int
}{
	{"containers can escape it (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)", [][3]int{{1, 2, 8}, {1, 3, 3}, {1, 4, 0}}},
	{"an image with a linked /dev can change names on the host (CVE-2026-41579)", [][3]int{{1, 3, 6}, {1, 4, 3}, {1, 5, 0}}},
}

var versionNumbers = regexp.MustCompile(`^v?(\d+)\.(\d+)\.(\d+)`)

// RuncFlaw returns the worst that is known of a version of runc; "" when that is nothing, or the
// text is no version.
func RuncFlaw(version string) string {
	m := versionNumbers.FindStringSubmatch(version)
	if m == nil {
		return ""
	}
	var have [3]int
	for i := range have {
		have[i], _ = strconv.Atoi(m[i+1]) // digits
	}
	for _, flaw := range runcFlaws {
		if !hasFix(have, flaw.fixed) {
			return flaw.what
		}
	}
	return ""
}

// hasFix compares with the first good version of have's own series, or of the next older one that
// has any.
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
