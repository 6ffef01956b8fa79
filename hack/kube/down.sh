#!/usr/bin/env bash
# Takes away everything that up.sh made, also when half of it is gone already,
# and shows that nothing is left.
set -euo pipefail
# shellcheck source=hack/kube/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# stop NAME ends the daemon of that name, if it runs.
stop() {
	local pid exe
	pid=$(cat "$run/$1.pid" 2>/dev/null) || return 0
	exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 0
	case ${exe% (deleted)} in
	*/bin/kube/* | */bin/cribox | */bin/fixture) ! is_ours "$pid" || end "$pid" "$1" ;;
	*/sleep | */bash | */unshare | */nsenter) end "$pid" "$1" ;;
	esac
}

# is_ours PID: what it was started with lies in the cluster's folders.
is_ours() { tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -e "$kube/" -e "$run/"; }

# bounded COMMAND... gives it two minutes; what it leaves, force takes away.
bounded() { quietly timeout -k 5 120 "$@" || note "not complete: ${*: -2}"; }

holder() { cat "$run/holder$1.pid" 2>/dev/null; }

# empty_node N: the polite way, while its cribox answers.
empty_node() {
	local n=$1 pid
	stop "kubelet$n"
	stop "proxy$n"
	pid=$(holder "$n") || return 0
	gone "$pid" && return 0
	if node_crictl "$n" --timeout 3s version >/dev/null 2>&1; then
		bounded "$bin/crictl" --runtime-endpoint "$(node_socket "$n")" --image-endpoint "$(node_socket "$n")" --timeout 60s rmp -fa
	fi
	stop "cribox$n"
	bounded nsenter -t "$pid" -m -n -- "$bin/cribox" shutdown --config "$(node_dir "$n")/cribox.toml"
	bounded nsenter -t "$pid" -m -n -- "$bin/kube/kube-proxy" --config "$(node_dir "$n")/proxy.yaml" --cleanup
	unmount_volumes "$n"
	stop "holder$n"
}

# unmount_volumes: the kubelet was ended before it could.
unmount_volumes() {
	local pid m
	pid=$(holder "$1")
	# shellcheck disable=SC2016 # awk's own
	nsenter -t "$pid" -m -- awk -v dir="$(node_dir "$1")/kubelet/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | sort -r |
		while read -r m; do nsenter -t "$pid" -m -- umount -l "$m" || true; done
}

end_nodes() { for n in $(nodes_made); do empty_node "$n"; done; }

end_control_plane() {
	local name
	for name in scheduler controller-manager apiserver etcd registry; do stop "$name"; done
}

# Each of the following prints what there is of one kind, one name per line.
left_processes() {
	local exe dir
	find /proc -maxdepth 2 -path '/proc/[0-9]*/exe' '(' -lname '*/bin/kube/*' -o -lname '*/bin/cribox*' -o -lname '*/bin/fixture*' -o -lname '*/bin/runc*' -o -lname '*/bin/crictl*' ')' 2>/dev/null | while read -r exe; do
		dir=${exe%/exe}
		if is_ours "${dir##*/}"; then basename "$dir"; fi
	done || true
	left_cgroups | sed 's|$|/cgroup.procs|' | xargs -r cat 2>/dev/null || true
	for n in $(nodes_made); do if pid=$(holder "$n") && ! gone "$pid"; then echo "$pid"; fi; done
}
left_cgroups() { # the deepest first
	local dir
	for dir in "/sys/fs/cgroup$cgroup" /sys/fs/cgroup/*"$cgroup"; do
		[ ! -d "$dir" ] || find "$dir" -depth -type d
	done
}
left_mounts() { awk '{print $5}' /proc/self/mountinfo | grep -E "^($kube|$run)/" | sort -r || true; }
left_links() {
	local n
	{ ip -o link show | sed -n "s/^[0-9]*: \(ckube[0-9]*\)[:@].*/\1/p"; } || true
	for n in $(nodes_made); do
		ip -o link show | sed -n "s/^[0-9]*: \(cbr$(instance "$n")\)[:@].*/\1/p"
	done
}
instance() { printf %s "$(node_state "$1")" | sha256sum | cut -c 1-6; }
left_rules() {
	local n
	nft list tables 2>/dev/null | sed -n 's/^table \(.* kube-proxy\)$/\1/p'
	for n in $(nodes_made); do nft list tables 2>/dev/null | sed -n "s/^table \(.*cribox_$(instance "$n")\)\$/\1/p"; done
}
left_accepts() { iptables -w -S FORWARD 2>/dev/null | sed -n 's/^-A FORWARD \(.*--comment "\?cribox-kube"\? .*\)/\1/p' || true; }
left_folders() { for dir in "$kube" "$run"; do [ ! -e "$dir" ] || echo "$dir"; done; }

kinds=(processes mounts links rules accepts cgroups folders)

# The impolite way, for what the polite way has left.
force() {
	local x
	force_processes
	for x in $(left_mounts); do umount -l "$x" 2>/dev/null || true; done
	for x in $(left_links); do ip link delete "$x" 2>/dev/null || true; done
	left_rules | while read -r x; do
		# shellcheck disable=SC2086 # a family and a name
		nft delete table $x
	done
	accepts | while read -ra x; do
		while iptables -w -D FORWARD "${x[@]}" 2>/dev/null; do :; done
	done
	for x in $(left_cgroups); do rmdir "$x" 2>/dev/null || true; done
}

need_root "make kube-down"
if [ -d "$kube" ]; then
	exec 9>"$kube/.lock"
	flock -n 9 || die "another make kube-up or make kube-down is at work"
fi
timed "removing all pods, ending the nodes" end_nodes
timed "ending the control plane" end_control_plane
timed "cleaning up" force
restore_forwarding "$kube/ip_forward.before"
remove_folders "$run" "$kube"
timed "looking for what is left" verify "${kinds[@]}"
