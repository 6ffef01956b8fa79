#!/bin/busybox sh
# shellcheck shell=dash
# What happens on the machine of arm64: a pod from its image to its removal, the daemon killed meanwhile, and critest.

# shellcheck source=hack/arm64/machine.sh
. /usr/local/lib/machine.sh

# same WANT GOT
same() { [ "$1" = "$2" ] || { echo "want $1, got $2"; return 1; }; }

# contains WANT FILE
contains() { grep -q -e "$1" "$2" || { echo "no $1 in $2:"; cat "$2"; return 1; }; }

# registry serves the test images on the loopback.
registry() {
	FIXTURE_TOOLBOX=/usr/local/bin/toolbox fixture serve --certs-d /etc/cribox/certs.d --ready-file /run/fixture.ready \
		--mirror docker.io,registry.k8s.io,k8s.gcr.io,gcr.io >/var/log/fixture.log 2>&1 &
	within 120 test -e /run/fixture.ready
}

# daemon starts cribox, and returns when it answers.
daemon() {
	cribox serve >>/var/log/cribox.log 2>&1 &
	serve=$!
	within 120 crictl version
}

# kill_and_start ends the daemon without a word.
kill_and_start() {
	kill -9 "$serve"
	wait "$serve"
	daemon
}

# pod NAME prints the request for a pod; container NAME IMAGE COMMAND that for a container. Both have the default
# seccomp profile.
pod() {
	mkdir -p "/var/log/pods/$1"
	cat <<END
{"metadata": {"name": "$1", "namespace": "arm64", "uid": "$1"}, "hostname": "$1", "log_directory": "/var/log/pods/$1",
 "linux": {"cgroup_parent": "/arm64", "security_context": {"seccomp": {"profile_type": 0}}}}
END
}
container() {
	cat <<END
{"metadata": {"name": "$1"}, "image": {"image": "$2"}, "log_path": "$1.log", "command": [$3],
 "linux": {"resources": {"memory_limit_in_bytes": 134217728}, "security_context": {"seccomp": {"profile_type": 0}}}}
END
}

pull() { crictl pull docker.io/library/busybox:1 && crictl pull docker.io/library/web:1; }

run_pod() {
	pod web >/tmp/pod.json
	web=$(crictl runp /tmp/pod.json)
}

create() {
	container server docker.io/library/web:1 '"/toolbox", "serve"' >/tmp/server.json
	container shell docker.io/library/busybox:1 '"sh", "-c", "echo begins; exec sleep 100000"' >/tmp/shell.json
	server=$(crictl create "$web" /tmp/server.json /tmp/pod.json) &&
		shell=$(crictl create "$web" /tmp/shell.json /tmp/pod.json)
}

start() { crictl start "$server" && crictl start "$shell" && same 2 "$(started_containers)"; }

# started_containers prints for how many containers, and not pods, runc was executed.
started_containers() { grep -e ' run --detach' /run/runc.calls | grep -c -e "$server" -e "$shell"; }

exec_sync() { same aarch64 "$(crictl exec -s "$shell" uname -m | grep .)"; }

exec_stream() { same "typed" "$(echo typed | crictl exec -i "$shell" cat)"; }

exec_code() {
	crictl exec -s "$shell" sh -c 'exit 7' 2>&1 | tee /tmp/code
	contains 'exit.* 7' /tmp/code
}

logs() { crictl logs "$shell" >/tmp/log && contains begins /tmp/log; }

stats() { crictl stats -o json "$shell" >/tmp/stats && contains workingSetBytes /tmp/stats && crictl statsp "$web"; }

visit() {
	local ip
	ip=$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$web")
	within 20 wget -q -O /tmp/answer "http://$ip:8080/" && cat /tmp/answer &&
		crictl exec -s "$shell" wget -q -O - http://127.0.0.1:8080/
}

# calls COMMAND prints how often runc was started for it: run or exec.
calls() { grep -c -e " $1 --detach" /run/runc.calls; }

# exec_without_runc waits until the shim has read the filter of the container's seccomp profile.
exec_without_runc() { within 60 executed_natively; }
executed_natively() {
	local before
	before=$(calls exec)
	exec_sync && same "$before" "$(calls exec)"
}

# pod_without_runc runs a second pod, whose seccomp filter is known from the first.
pod_without_runc() {
	local before
	before=$(calls run)
	pod second >/tmp/second.json
	second=$(crictl runp /tmp/second.json) && crictl rmp -f "$second" && same "$before" "$(calls run)"
}

# critest_specs runs the specs that the disk names. Left out are benchmarks, and the spec whose image only its own
# registry has.
critest_specs() {
	local status=0 log=/var/log/critest
	: >/tmp/critest.yaml
	critest -config /tmp/critest.yaml -runtime-endpoint unix:///run/cribox/cribox.sock -ginkgo.no-color -ginkgo.skip \
		"benchmark|public image with digest should be pulled" -ginkgo.focus "$(cat /root/specs)" >"$log" 2>&1 || status=$?
	found=$(sed -n 's/.* -- \([0-9]*\) Passed | \([0-9]*\) Failed .*/: \1 passed, \2 failed/p' "$log")
	tail -n 60 "$log"
	[ -n "$found" ] && [ "${found#: 0 }" = "$found" ] && return "$status"
}

# Each of the following prints what there is of one kind, one name per line.
left_mounts() { grep -e /run/cribox/ -e /run/netns/ /proc/self/mounts; }
left_namespaces() { ls /run/netns; }
left_cgroups() { find /sys/fs/cgroup -path '*/arm64/*' -type d; }

everything_there() {
	local kind
	for kind in mounts namespaces cgroups; do [ -n "$(left_$kind)" ] || { echo "no $kind are found"; return 1; }; done
}

nothing_left() {
	local kind
	for kind in mounts namespaces cgroups; do same "" "$(left_$kind)" || return; done
}

stop() {
	everything_there && crictl stop "$server" "$shell" && crictl rm "$server" "$shell" && crictl stopp "$web" &&
		crictl rmp "$web" && same "" "$(crictl ps -aq)" && same "" "$(crictl pods -q)"
}

step "machine" machine
printf 'fact | Linux %s | %s | cgroup v%s\n' "$(uname -r)" "$(uname -m)" "$version"
step "registry" registry
step "daemon" daemon
printf 'fact | %s | %s | %s\n' "$(cribox --version)" "$(runc --version | head -n 1)" "$(crictl --version)"
step "pull of two images" pull
step "RunPodSandbox" run_pod
step "CreateContainer, twice" create
step "StartContainer, twice" start
step "ExecSync" exec_sync
step "ExecSync without runc" exec_without_runc
step "exit code of ExecSync" exec_code
step "Exec with input" exec_stream
step "log" logs
step "figures" stats
step "the pod answers, from the node and inside" visit
step "daemon killed and started" kill_and_start
step "ExecSync after that" exec_sync
step "RunPodSandbox without runc" pod_without_runc
step "StopContainer, RemoveContainer, StopPodSandbox, RemovePodSandbox" stop
step "nothing is left" nothing_left
step "critest" critest_specs
finish passed
