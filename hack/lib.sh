# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it: what they say, and where things are.

shopt -s inherit_errexit # $(...) stops at an error too

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$top/bin

# A machine that started us without a home still needs a place for Go's caches.
export HOME=${HOME:-/root}

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

need_root() { [ "$(id -u)" -eq 0 ] || die "$1 needs root: it makes namespaces, mounts and networks"; }

# milliseconds since boot; not the wall clock, which may jump.
now_ms() {
	local up
	read -r up _ </proc/uptime
	echo $((10#${up/./} * 10))
}

# seconds_since START_MS prints seconds with one decimal.
seconds_since() {
	local d=$(($(now_ms) - $1))
	printf '%d.%d s' $((d / 1000)) $((d % 1000 / 100))
}

# timed TEXT COMMAND... says what happens and, when it is over, how long it took.
timed() {
	local text=$1 start
	shift
	say "$text"
	start=$(now_ms)
	"$@"
	note "took $(seconds_since "$start")"
}

# quietly COMMAND... keeps the command's output unless it fails.
quietly() {
	local out
	out=$(mktemp)
	if "$@" >"$out" 2>&1; then
		rm -f "$out"
		return 0
	fi
	tail -n 40 "$out" >&2
	rm -f "$out"
	return 1
}

# patiently COMMAND... tries again after a while, twice, when the command fails: what
# asks a server on the net may.
patiently() {
	local pause
	for pause in 5 20; do
		if "$@"; then return 0; fi
		note "this failed; trying again in $pause s" >&2
		sleep "$pause"
	done
	"$@"
}

# replace_section PAGE TITLE puts what it reads in the place of that section of the page, or at its end.
replace_section() {
	local new
	new=$(cat)
	{ awk -v title="## $2" '/^## / { skip = $0 == title } !skip' "$1" && printf '\n%s\n' "$new"; } | cat -s >"$1.new"
	mv "$1.new" "$1"
}
