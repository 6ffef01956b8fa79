#!/usr/bin/env bash
# Takes away everything that run.sh made, also when half of it is gone already,
# and shows that nothing is left.
set -euo pipefail
# shellcheck source=hack/demo.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo.sh"

# The polite way: cribox removes its pods. A daemon that was killed is started
# once more for that, because it alone knows what it made.
remove_pods() {
	[ -e "$config" ] && [ -x "$bin/cribox" ] && [ -x "$bin/crictl" ] || return 0
	if ! daemon_pid >/dev/null; then
		[ -d "$state" ] || return 0
		note "cribox does not run: starting it to remove its pods"
		launch_daemon || tail -n 3 "$demo/daemon.log"
	fi
	if answers; then
		bounded "$bin/crictl" --config "$demo/crictl.yaml" rmp -fa
	else
		note "cribox does not answer"
	fi
}

# bounded COMMAND... gives it a minute; what it leaves, force takes away.
bounded() { quietly timeout -k 5 60 "$@" || note "not complete: $1 ${*: -1}"; }

end_processes() {
	local pid
	if pid=$(daemon_pid); then end "$pid" cribox; fi
	if [ -d "$state" ] && [ -x "$bin/cribox" ]; then
		bounded "$bin/cribox" shutdown --config "$config"
	fi
	if pid=$(fixture_pid); then end "$pid" fixture; fi
}

# Each of the following prints what there is of one kind, one name per line.
# Everything of this demonstration carries its folders or its instance.
left_processes() { # of cribox and its registry, and in its pods
	local exe dir
	find /proc -maxdepth 2 -path '/proc/[0-9]*/exe' \( -lname "$bin/cribox*" -o -lname "$bin/fixture*" \) 2>/dev/null | while read -r exe; do
		dir=${exe%/exe}
		if tr '\0' ' ' <"$dir/cmdline" 2>/dev/null | grep -qF -e "$state" -e "$demo/"; then basename "$dir"; fi
	done || true # processes come and go while find looks
	left_cgroups | sed 's|$|/cgroup.procs|' | xargs -r cat 2>/dev/null || true
}
left_cgroups() { # the deepest first
	local dir
	for dir in /sys/fs/cgroup"$cgroup" /sys/fs/cgroup/*"$cgroup"; do
		[ ! -d "$dir" ] || find "$dir" -depth -type d
	done
}
left_mounts() { awk '{print $5}' /proc/self/mountinfo | grep -E "^($demo|$state|/run/netns/cribox-$instance-)" | tac || true; }
left_namespaces() { find /run/netns -maxdepth 1 -name "cribox-$instance-*" 2>/dev/null || true; }
left_links() { ip -o link show | sed -n "s/^[0-9]*: \(cbr$instance\)[:@].*/\1/p"; }
left_rules() {
	nft list tables 2>/dev/null | sed -n "s/^table \(.*cribox_$instance\)\$/\1/p"
	iptables-save 2>/dev/null | grep -F "cribox-$instance" || true
}
left_folders() { for dir in "$demo" "$state"; do [ ! -e "$dir" ] || echo "$dir"; done; }

kinds=(processes mounts namespaces links rules cgroups folders)

# The impolite way, for what the polite way has left: the folders, the cgroup that
# run.sh asked for, and nothing else unless something had gone wrong.
force() {
	local kind found x
	for kind in processes mounts namespaces links rules; do
		found=$("left_$kind" | sort -u)
		[ -z "$found" ] || printf '    cribox has left %s, taking them away:\n%s\n' "$kind" "$found"
	done
	force_processes
	for x in $(left_mounts); do umount -l "$x" 2>/dev/null || true; done
	for x in $(left_namespaces); do rm -f "$x"; done
	for x in $(left_links); do ip link delete "$x"; done
	left_rules | sed -n 's/^inet //p' | while read -r x; do nft delete table inet "$x"; done
	for x in $(left_cgroups); do rmdir "$x" 2>/dev/null || true; done
}

need_root "make stop"
if [ -d "$demo" ]; then
	exec 9>"$demo/.lock"
	flock -n 9 || die "another make run or make stop is at work"
fi
timed "removing all pods" remove_pods
timed "ending cribox and the registry" end_processes
timed "cleaning up" force
restore_forwarding "$demo/ip_forward.before"
remove_folders "$state" "$demo"
timed "looking for what is left of instance $instance" verify "${kinds[@]}"
