#!/usr/bin/env bash
# Boots a machine, installs cribox on it, runs vm-tests against it, and ends it. When tests have
# failed, the machine's journal and console stay in bin/vm-run.
#
#   test.sh           all tests but those that follow; writes docs/vm-results.md
#   test.sh -smoke    what takes 8 minutes at most
#   test.sh -kube     the tests that begin with TestKube: the machine is a node of a cluster whose
#                     control plane runs here; writes its section of the page. With KERNEL=backports,
#                     since user namespaces need Linux 6.3
#   test.sh -kernel   what depends on the kernel, for KERNEL=backports; writes its section of the page
#   test.sh -selinux  the tests that begin with TestSELinux, for LSM=selinux; writes its section of the page
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mode=${1:-}
limit=180m
which=(-skip '^Test(Kube|SELinux)')
title=
case $mode in
-smoke) limit=25m which+=(-smoke) ;;
-kube) # LINK is for hack/vm/kube.sh
	title="A node of a Kubernetes cluster" which=(-run '^TestKube' -kube)
	export LINK=ckube9
	;;
-kernel) title="A newer kernel" which=(-few -skip '^Test(Kube|SELinux|Upgrade|Purge|OOMKilled)') ;;
-selinux) title="SELinux" which=(-run '^TestSELinux' -selinux) ;;
esac
log=$run/tests.log

finish() {
	local status=$1
	if [ "$status" -ne 0 ] && vm_pid >/dev/null; then
		vm 'journalctl -o short-monotonic --no-pager' >"$run/journal.log" 2>&1 || true
		note "logs: $run/journal.log, $run/console.log"
	fi
	"$top/hack/vm/down.sh"
	[ "$mode" != -kube ] || "$top/hack/kube/down.sh"
}

tests() { (cd "$top/vm-tests" && go test -count 1 -timeout "$limit" -v . "${which[@]}" 2>&1 | tee "$log"); }

versions() {
	vm '. /etc/os-release; echo "| $PRETTY_NAME | Linux $(uname -r) | $(systemctl --version | sed -n "1s/ (.*//p") |"
		echo "| $(cribox --version) | $(runc --version | head -n 1) | $(crun --version | head -n 1), $(critest --version | head -n 1) |"'
	[ "$mode" != -kube ] || vm 'echo "| $(kubelet --version) | cgroup driver systemd | memory QoS, \`failCgroupV1\` at its default |"'
}

# heading HOW prints the begin of the page, or of a section of it.
heading() {
	if [ -n "$title" ]; then
		printf '## %s\n\nWritten by `make test-vm%s` on %s. %s\n' "$title" "$mode" "$(date -u +%F)" "$1"
		return
	fi
	cat <<-END
		# Results on a virtual machine

		Written by \`make test-vm\` on $(date -u +%F): a Debian 12 with systemd as its first process, cgroup v2 and AppArmor.
		$1
	END
}

# results prints the page or a section: what ran on what, and how it ended. Specs of critest and tests of crictl-tests are counted, and
# named when they failed.
results() {
	local emulated="The processor was emulated, so times are no measure."
	[ "${KVM:-}" != 1 ] || emulated="The processor's own virtualization was used."
	heading "$emulated"
	printf '\n| | | |\n|---|---|---|\n%s\n\n| test | result | time |\n|---|---|---|\n' "$1"
	awk '
		/^ *--- (PASS|FAIL|SKIP): / {
			n = split($3, part, "/")
			result = tolower($2); sub(":", "", result)
			if (part[1] ~ /^Test(Critest|CrictlTests|Units)$/ && n > 2) { specs[part[1] "/" part[2] " " result]++; if (result == "fail") failed[++f] = $3; next }
			if (part[1] == "TestSELinuxCritest" && n > 1) { specs[part[1] " " result]++; if (result == "fail") failed[++f] = $3; next }
			if (n > 1) parent[part[1]] = 1
			gsub(/[()]/, "", $4); rows[++r] = $3; how[r] = result; took[r] = $4
		}
		END {
			for (i = 1; i <= r; i++) {
				if (rows[i] in parent) continue
				more = ""
				if (rows[i] ~ /^Test((SELinux)?Critest|CrictlTests|Units)/)
					more = sprintf(": %d passed, %d failed, %d left out", specs[rows[i] " pass"], specs[rows[i] " fail"], specs[rows[i] " skip"])
				printf "| %s | %s%s | %s |\n", rows[i], how[i], more, took[i]
			}
			if (f) print "\nOf these failed:\n"
			for (i = 1; i <= f; i++) { gsub("_", " ", failed[i]); print "- " failed[i] }
		}
	' "$log"
}

# publish puts what results prints in the place of the page, or of its section there.
publish() {
	local page=$top/docs/vm-results.md new
	new=$(results "$1")
	if [ -n "$title" ]; then
		replace_section "$page" "$title" <<<"$new"
	else
		{ printf '%s\n\n' "$new" && sed -n '/^## /,$p' "$page"; } >"$page.new"
		mv "$page.new" "$page"
	fi
}

trap 'finish $?' EXIT
"$top/hack/vm/down.sh" # of a run that was cut off
[ "$mode" != -kube ] || "$top/hack/kube/down.sh"
"$top/hack/vm/up.sh"
"$top/hack/vm/install.sh"
[ "$mode" != -kube ] || "$top/hack/vm/kube.sh"
what=$(versions)
status=0
timed "vm-tests" tests || status=$?
case $mode in
"" | -kube | -kernel | -selinux) publish "$what" ;;
esac
exit "$status"
