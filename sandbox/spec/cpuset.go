package spec

import (
	"strconv"
	"strings"
)

// maxSetBit is beyond every machine; it bounds what a list can cost, however
// often it names the same range.
const maxSetBit = 1 << 16

// checkSet wants a list such as "0-3,8" within online; an empty online is not compared with.
func checkSet(field, list, online string) error {
	if list == "" {
		return nil
	}
	asked, ok := parseSet(list)
	if !ok {
		return invalid(field, "%q is not a list such as 0-3,8", truncate(list))
	}
	have, ok := parseSet(strings.TrimSpace(online))
	if !ok {
		return nil
	}
	for n := range asked {
		if !have[n] {
			return invalid(field, "%d is not among %s", n, strings.TrimSpace(online))
		}
	}
	return nil
}

func parseSet(list string) (map[int]bool, bool) {
	if len(list) > maxPath {
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
