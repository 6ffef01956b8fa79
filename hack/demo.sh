# shellcheck shell=bash disable=SC2034
# Sourced by run.sh and stop.sh: where the demonstration keeps things, and who
# its processes are.

# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/process.sh
. "$top/hack/process.sh"
# shellcheck source=hack/leftovers.sh
. "$top/hack/leftovers.sh"

# Both may be set to run a second demonstration beside the first.
demo=${CRIBOX_DEMO:-/var/lib/cribox-demo}
state=${CRIBOX_DEMO_STATE:-/run/cribox-demo}

root=$demo/root
config=$demo/config.toml
cgroup=/$(basename "$demo")
# The daemon names its links, rules and namespaces after its state folder.
instance=$(printf %s "$state" | sha256sum | cut -c 1-6)

crictl() { "$bin/crictl" --config "$demo/crictl.yaml" "$@"; }

daemon_pid() { pid_of "$demo/daemon.pid" "$bin/cribox"; }
fixture_pid() { pid_of "$demo/fixture.pid" "$bin/fixture"; }

# launch_daemon starts cribox and waits until it answers; false when it does not.
launch_daemon() {
	setsid "$bin/cribox" serve --config "$config" >>"$demo/daemon.log" 2>&1 </dev/null 9>&- &
	echo $! >"$demo/daemon.pid"
	within 30 answers_or_gone $! || true
	answers
}

answers() { crictl --timeout 2s version >/dev/null 2>&1; }
answers_or_gone() { answers || gone "$1"; }
