# shellcheck shell=bash disable=SC2034
# Sourced by run.sh and stop.sh: where the demonstration keeps things, and who
# its processes are.

# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Both may be set to run a second demonstration beside the first.
demo=${CRIBOX_DEMO:-/var/lib/cribox-demo}
state=${CRIBOX_DEMO_STATE:-/run/cribox-demo}

root=$demo/root
config=$demo/config.toml
cgroup=/$(basename "$demo")
# The daemon names its links, rules and namespaces after its state folder.
instance=$(printf %s "$state" | sha256sum | cut -c 1-6)

crictl() { "$bin/crictl" --config "$demo/crictl.yaml" "$@"; }

# pid_of PIDFILE EXECUTABLE prints the pid if it still is a process of that
# executable: a pid file may be old, and its number somebody else's by now.
pid_of() {
	local pid exe
	pid=$(cat "$1" 2>/dev/null) || return 1
	exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
	[ "${exe% (deleted)}" = "$2" ] || return 1
	echo "$pid"
}

daemon_pid() { pid_of "$demo/daemon.pid" "$bin/cribox"; }
fixture_pid() { pid_of "$demo/fixture.pid" "$bin/fixture"; }

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

# launch_daemon starts cribox and waits until it answers; false when it does not.
launch_daemon() {
	setsid "$bin/cribox" serve --config "$config" >>"$demo/daemon.log" 2>&1 </dev/null 9>&- &
	echo $! >"$demo/daemon.pid"
	within 30 answers_or_gone $! || true
	answers
}

answers() { crictl --timeout 2s version >/dev/null 2>&1; }
answers_or_gone() { answers || gone "$1"; }
