#!/usr/bin/env bash
# Builds the programs of arm64 that cribox carries, and runs unit tests as programs of arm64 under the user
# mode emulation of qemu. Programs of arm64 that a test starts (pause) run too: the kernel hands them to
# qemu, in a user namespace of our own, so the machine does not change. That needs Linux 6.7. Left out is
# what needs the kernel as root has it: mounts, networks, cgroups of version 1, and namespaces that the
# emulation cannot make together with a process.
#
#   arm64.sh [FLAG OF go test]...
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/apt.sh
. "$top/hack/apt.sh"

qemu=/usr/bin/qemu-aarch64
packages=(./cni/bridge ./cni/lease ./cni/ledger ./config ./imageservice/imageref ./imageservice/keyring
	./imageservice/pull ./imageservice/registry ./internal/... ./runtimeshim/cgroup ./runtimeshim/crilog
	./runtimeshim/helper ./runtimeshim/oci ./runtimeshim/place ./runtimeshim/wire ./sandbox/apparmor
	./sandbox/cgroup ./sandbox/pause ./sandbox/selinux ./sandbox/spec/... ./sandbox/stats ./sandbox/store
	./sandbox/table ./server/...)

# What the emulation cannot do: a process that is the first of its namespaces (of pause, and of whatever starts
# place or runs inside a container), openat2 (whatever removes or relabels folders), and a figure of memory that
# is the emulator's own.
without='^TestLeavesWithZero$/as_pid_1$|^TestReapsEveryOrphan$|^TestMemory$|^TestCounterWatchWithoutInotify$'
without+='|^TestSEC82(InsideACommand|FalseProc|OldestFilter)$|^TestSEC80(InsideAProcess|MountTargets|FalseProc)$'
without+='|^Test(CommandInPath|FailuresNameTheStep|Take|TakeGivesSignalsBack)$'
without+='|FromInside$|^Test(PauseFromOutside|ExecEqualsContainer)$'
without+='|^Test(Remove|RemoveOutside|Trash|RelabelDeep)$'

# programs builds pause and place, and compares them with the files that cribox carries.
programs() {
	sh "$top/sandbox/pause/build.sh" --check --all
	sh "$top/runtimeshim/place/build.sh" --check --all
}

# inside runs in the namespaces that outside has made: it names qemu to the kernel, and tests.
inside() {
	read -r _ # until outside has said who the users are
	mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc ||
		die "this kernel has no binfmt_misc for a user namespace: Linux 6.7 has"
	# The first bytes of an ELF program of arm64, and which bits of them count. P: qemu learns argv[0];
	# F: its file is opened now.
	printf '%s' ':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:' \
		'\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:' "$qemu:PF" \
		>/proc/sys/fs/binfmt_misc/register
	cd "$top"
	GOARCH=arm64 CGO_ENABLED=0 go test -vet off -count 1 -timeout 20m -skip "$without" "$@" "${packages[@]}" </dev/null
}

# outside makes a user namespace in which all users are who they are here.
outside() {
	local maps
	exec 3>&1 # standard output of a coprocess is a pipe to us
	coproc namespace { exec unshare --user --mount --propagation private "$0" --inside "$@" >&3; }
	# shellcheck disable=SC2154 # coproc assigns it
	maps=/proc/$namespace_PID
	within 10 differs "$maps/ns/user" || die "no user namespace came up"
	echo "0 0 4294967295" >"$maps/uid_map"
	echo "0 0 4294967295" >"$maps/gid_map"
	echo >&"${namespace[1]}"
	wait "$namespace_PID"
}

# differs FILE: it is another namespace than ours.
differs() { [ "$(readlink "$1")" != "$(readlink /proc/self/ns/user)" ]; }

# shellcheck source=hack/process.sh
. "$top/hack/process.sh"
if [ "${1:-}" = --inside ]; then
	shift
	inside "$@"
	exit
fi
need_root "make test-arm64"
ensure_packages qemu-user gcc-aarch64-linux-gnu
timed "building pause and place" programs
timed "unit tests as programs of arm64" outside "$@"
