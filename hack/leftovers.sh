# shellcheck shell=bash
# Sourced by the scripts that start and stop something on this host: what they
# change of it and set back, and how they show that nothing is left. Whoever
# stops has a function left_KIND for each kind of thing, which prints what there
# is of it, one name per line.

# allow_forwarding FILE UNDO: pods reach other networks through this host only if it forwards. FILE remembers that it did not.
allow_forwarding() {
	local switch=/proc/sys/net/ipv4/ip_forward
	[ "$(cat $switch)" = 0 ] || return 0
	echo 0 >"$1"
	echo 1 >$switch
	note "set net.ipv4.ip_forward=1 ($2 sets it back)"
}

# restore_forwarding FILE undoes allow_forwarding.
restore_forwarding() {
	[ -e "$1" ] || return 0
	cat "$1" >/proc/sys/net/ipv4/ip_forward
	note "set net.ipv4.ip_forward back to $(cat "$1")"
}

# remove_folders DIR... but nothing below a mount that is still there.
remove_folders() {
	[ -z "$(left_mounts)" ] || die "still mounted: $(left_mounts)"
	rm -rf "$@"
}

# force_processes ends what is left of them.
force_processes() {
	local found x
	found=$(left_processes | sort -u)
	for x in $found; do kill -KILL "$x" 2>/dev/null || true; done
	for x in $found; do within 5 gone "$x" || true; done
}

# verify KIND... shows what is left of each kind, which is an error.
verify() {
	local kind found rest=0
	for kind; do
		found=$("left_$kind" | sort -u)
		[ -n "$found" ] || continue
		rest=1
		printf '    left %s:\n%s\n' "$kind" "$found"
	done
	[ $rest = 0 ] || die "something is left"
	local kinds="$*"
	note "nothing is left: no ${kinds// /, no }"
}
