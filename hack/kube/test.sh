#!/usr/bin/env bash
# Runs the scenarios of kube-tests on a cluster that they make and take away. When
# some fail, what each of them said comes once more at the end, without what
# kubectl showed in between.
set -euo pipefail
# shellcheck source=hack/kube/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

log=$(mktemp)
trap 'ended $?' EXIT

scenarios() {
	(cd "$top/kube-tests" && env CRIBOX_BIN="$bin" go test -count 1 -timeout 45m -v . 2>&1 | tee "$log")
}

# failures prints what the failed ones said: the lines that name a file of the tests, each with a few that follow.
failures() {
	awk '
		/^=== (RUN|NAME|CONT|PAUSE) / { test = $3; follow = 0; next }
		/^ +--- FAIL: |^--- FAIL: / { failed[++n] = $3; next }
		/^panic: / { print "    " $0 }
		/^ +[a-z_]+_test\.go:[0-9]+: / {
			follow = /space_test\.go:[0-9]+: (kubectl |the namespace was gone)/ ? 0 : 6
		}
		follow-- > 0 { said[test] = said[test] substr($0, 1, 400) "\n" }
		END { for (i = 1; i <= n; i++) printf "    %s\n%s", failed[i], said[failed[i]] }
	' "$log"
}

ended() {
	if [ "$1" -ne 0 ]; then
		"$top/hack/kube/down.sh" || true # tests that ran out of time have left the cluster
		say "these failed:"
		failures
	fi
	rm -f "$log"
}

# A run that was cut off has left its cluster, with the programs of its day.
if [ -e "$kube" ] || [ -e "$run" ]; then "$top/hack/kube/down.sh"; fi
timed "kube-tests" scenarios
