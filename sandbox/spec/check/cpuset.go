package check

import (
	"strconv"
	"strings"
)

// maxSetBit is larger than any machine needs. It limits the work that a list can cause, also when
// the list names the same range many times.
const maxSetBit = 1 << 16

// Set wants a list such as "0-3,8" that lies within online. If online is empty, any list will do.
func Set(field, list, online string) error {
	if list == "" {
		return nil
	}
	asked, ok := parseSet(list)
	if !ok {
		return Invalid(field, "%q is not a list such as 0-3,8", Truncate(list))
	}
	have, ok := parseSet(strings.TrimSpace(online))
	if !ok {
		return nil
	}
	for n := range asked {
		if !have[n] {
			return Invalid(field, "%d is not in %s, the list of this machine", n, strings.TrimSpace(online))
		}
	}
	return nil
}

// IsSet is true for a list such as "0-3,8".
func IsSet(list string) bool {
	_, ok := parseSet(list)
	return ok
}

func parseSet(list string) (map[int]bool, bool) {
	if len(list) > MaxPath {
		return nil, false
	}
	set := map[int]bool{}
	cost := uint64(0)
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 31)
		to, err2 := strconv.ParseUint(last, 10, 31)
		if err1 != nil || err2 != nil || from > to || to >= maxSetBit {
			return nil, false
		}
		if cost += to - from + 1; cost > maxSetBit {
			return nil, false
		}
		for n := from; n <= to; n++ {
			set[int(n)] = true
		}
	}
	return set, true
}
