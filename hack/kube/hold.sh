#!/usr/bin/env bash
# Holds the namespaces of a node: it ends when the node does. up.sh starts it in them.
#
#   hold.sh READY                   makes the file READY when all is there
#   hold.sh READY STORE STATE       and the node has files of its own in /etc, /opt and /run, with nothing there of a
#                                   network or of its add-on; STATE is one folder with the host's
set -euo pipefail
ready=$1 store=${2:-} state=${3:-}

# own FOLDER: what the node writes there is seen by the node alone.
own() {
	local mine=$store/${1#/} mounts=() m
	mapfile -t mounts < <(awk -v dir="$1/" '
		index($5, dir) != 1 || $5 ~ "^/run/netns" || last != "" && index($5, last "/") == 1 { next }
		{ print last = $5 }' /proc/self/mountinfo)
	[ "${state#"$1"/}" = "$state" ] || mounts+=("$state")
	mkdir -p "$mine"/{changes,work,all}
	mount -t overlay -o "lowerdir=$1,upperdir=$mine/changes,workdir=$mine/work" overlay "$mine/all"
	for m in "${mounts[@]}"; do mount --rbind "$m" "$mine/all${m#"$1"}"; done
	mount --rbind "$mine/all" "$1"
}

mount --make-rshared /
if [ -n "$store" ]; then
	mkdir -p "$store" "$state"
	mount -t tmpfs tmpfs "$store"
	for folder in /etc /opt /run; do own "$folder"; done
	rm -rf /etc/cni /opt/cni /run/flannel /run/xtables.lock
fi
mkdir -p /run/netns /var/log/containers
mount -t tmpfs -o mode=755 tmpfs /run/netns
mount --make-rshared /run/netns
mount -t tmpfs -o mode=755 tmpfs /var/log/containers
ip link set lo up
touch "$ready"
exec sleep infinity
