#!/usr/bin/env bash
# compare.sh ROUNDS PODS measures cribox beside containerd with
# crictl-tests/cmd/compare, which prints a table and writes docs/performance.md.
# `make compare` has built everything in bin/ before. With ONLY=pulls, or another
# part that `compare -h` names, only that is measured, and docs/ stays as it is.
#
# All runs in namespaces of processes, mounts and network of its own: what is in
# them ends with them, however this script ends. On the host are only a folder
# and cgroups for as long as it takes.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/process.sh
. "$top/hack/process.sh"
# shellcheck source=hack/leftovers.sh
. "$top/hack/leftovers.sh"

rounds=${1:-3} pods=${2:-40}
out=(-out "$top/docs")
[ -z "${ONLY:-}" ] || out=(-only "$ONLY")

build() { (cd "$top/crictl-tests" && GOWORK=off CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$bin/compare" ./cmd/compare); }

# measure shows its progress and keeps the table in a file. The shell stays the
# first process in there: it reaps what loses its parent.
measure() {
	# shellcheck disable=SC2016 # the shell in there expands it
	unshare --mount --net --pid --fork --kill-child --mount-proc bash -euc '
		mount -t tmpfs -o mode=755 tmpfs /run     # sockets and state
		mount -t tmpfs -o mode=755 tmpfs /var/lib # where network plugins note their results
		ip link set lo up
		mkfs.ext4 -q "$0"                         # new: one that has just deleted much is slow
		mount -o loop,noinit_itable "$0" "${0%.ext4}"
		code=0
		"$@" || code=$?
		exit $code
	' "$work/disk.ext4" "$bin/compare" -bin "$bin" -work "$work/disk" -cgroup "$cgroup" \
		-pause "$top/sandbox/pause/pause_$(go env GOARCH)" "${out[@]}" -rounds "$rounds" -pods "$pods" -plugins="${PLUGINS:-false}" >"$work/table"
}

left_cgroups() { # the deepest first
	local dir
	for dir in "/sys/fs/cgroup/$cgroup" /sys/fs/cgroup/*/"$cgroup"; do
		[ ! -d "$dir" ] || find "$dir" -depth -type d
	done
}
left_processes() { left_cgroups | sed 's|$|/cgroup.procs|' | xargs -r cat 2>/dev/null || true; }
left_mounts() { awk '{print $5}' /proc/self/mountinfo | grep -F "$work" || true; }
left_folders() { [ ! -e "$work" ] || echo "$work"; }

no_cgroups() {
	local dir
	for dir in $(left_cgroups); do rmdir "$dir" 2>/dev/null || true; done
	[ -z "$(left_cgroups)" ]
}

clean_up() {
	within 10 no_cgroups || true
	remove_folders "$work"
	verify processes mounts cgroups folders
}

need_root "make compare"
for tool in cribox runc containerd cni; do
	[ -e "$bin/$tool" ] || die "bin/$tool is missing: start this with \`make compare\`"
done
# Not below /tmp, which may be in memory.
work=$(mktemp -d /var/tmp/cribox-compare.XXXXXX)
cgroup=${work##*/}
trap clean_up EXIT
mkdir "$work/disk"
truncate -s 40G "$work/disk.ext4" # takes what is written: some GiB a round
timed "building bin/compare" build
timed "measuring, $rounds rounds" measure
cat "$work/table"
