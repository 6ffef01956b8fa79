#!/usr/bin/env bash
# Boots a machine, installs cribox on it, runs vm-tests against it, and ends it. When tests have
# failed, the machine's journal and console stay in bin/vm-run.
#
#   test.sh         all tests; writes docs/vm-results.md
#   test.sh -smoke  what takes 8 minutes at most
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

limit=180m
[ "${1:-}" != -smoke ] || limit=25m
log=$run/tests.log

finish() {
	local status=$1
	if [ "$status" -ne 0 ] && vm_pid >/dev/null; then
		vm 'journalctl -o short-monotonic --no-pager' >"$run/journal.log" 2>&1 || true
		note "logs: $run/journal.log, $run/console.log"
	fi
	"$top/hack/vm/down.sh"
}

tests() { (cd "$top/vm-tests" && go test -count 1 -timeout "$limit" -v . "$@" 2>&1 | tee "$log"); }

versions() {
	vm '. /etc/os-release; echo "| $PRETTY_NAME | Linux $(uname -r) | $(systemctl --version | sed -n "1s/ (.*//p") |"
		echo "| $(cribox --version) | $(runc --version | head -n 1) | $(crun --version | head -n 1), $(critest --version | head -n 1) |"'
}

# results prints the page: what ran on what, and how it ended. Specs of critest are counted, and named when they failed.
results() {
	cat <<-END
		# Results on a virtual machine

		Written by \`make test-vm\` on $(date -u +%F): a Debian 12 with systemd as its first process, cgroup v2 and AppArmor.
		$([ "${KVM:-}" = 1 ] && echo "The processor's own virtualization was used." || echo "The processor was emulated, so times are no measure.")

		| | | |
		|---|---|---|
		$1

		| test | result | time |
		|---|---|---|
	END
	awk '
		/^ *--- (PASS|FAIL|SKIP): / {
			n = split($3, part, "/")
			result = tolower($2); sub(":", "", result)
			if (part[1] == "TestCritest" && n > 2) { specs[part[1] "/" part[2] " " result]++; if (result == "fail") failed[++f] = $3; next }
			if (n > 1) parent[part[1]] = 1
			gsub(/[()]/, "", $4); rows[++r] = $3; how[r] = result; took[r] = $4
		}
		END {
			for (i = 1; i <= r; i++) {
				if (rows[i] in parent) continue
				more = ""
				if (rows[i] ~ /^TestCritest/)
					more = sprintf(": %d passed, %d failed, %d left out", specs[rows[i] " pass"], specs[rows[i] " fail"], specs[rows[i] " skip"])
				printf "| %s | %s%s | %s |\n", rows[i], how[i], more, took[i]
			}
			if (f) print "\nSpecs that failed:\n"
			for (i = 1; i <= f; i++) { gsub("_", " ", failed[i]); print "- " failed[i] }
		}
	' "$log"
}

trap 'finish $?' EXIT
"$top/hack/vm/down.sh" # of a run that was cut off
"$top/hack/vm/up.sh"
"$top/hack/vm/install.sh"
what=$(versions)
status=0
timed "vm-tests" tests "$@" || status=$?
[ "${1:-}" = -smoke ] || results "$what" >"$top/docs/vm-results.md"
exit "$status"
