# shellcheck shell=bash
# Sourced by the scripts that start daemons: who a process is, waiting for it,
# and ending it.

# pid_of PIDFILE EXECUTABLE prints the pid if it still is a process of that
# executable: a pid file may be old, and its number somebody else's by now.
pid_of() {
	local pid exe
	pid=$(cat "$1" 2>/dev/null) || return 1
	exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
	[ "${exe% (deleted)}" = "$2" ] || return 1
	echo "$pid"
}

# is_stale PID: the file that the process was started from has been replaced.
is_stale() { [[ $(readlink "/proc/$1/exe") == *" (deleted)" ]]; }

# within SECONDS COMMAND... repeats the command until it succeeds.
within() {
	local end=$(($(now_ms) + $1 * 1000))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(now_ms)" -lt "$end" ] || return 1
		sleep 0.1
	done
}

gone() { ! kill -0 "$1" 2>/dev/null || [ "$(process_state "$1")" = Z ]; }

process_state() { sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }

# end PID NAME asks a process to leave, and insists after ten seconds.
end() {
	kill -TERM "$1" 2>/dev/null || return 0
	within 10 gone "$1" && return
	note "$2 (pid $1) did not leave on SIGTERM; sending SIGKILL"
	kill -KILL "$1" 2>/dev/null || true
	within 5 gone "$1" || note "$2 (pid $1) is still there: $(process_state "$1")"
}

# show_log FILE prints its end to stderr.
show_log() {
	echo "--- last lines of $1" >&2
	tail -n 20 "$1" >&2 || true
}
