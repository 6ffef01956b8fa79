#!/usr/bin/env bash
# Starts cribox beside a registry with small images, and runs a pod on it. What
# runs already is kept. `make run` has built everything in bin/ before.
set -euo pipefail
# shellcheck source=hack/demo.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo.sh"

images=(docker.io/library/busybox:1 docker.io/library/web:1)

# free_subnet prints the first of a few networks that no route of this host has.
free_subnet() {
	local net
	for net in 10.213.0.0/24 172.30.213.0/24 192.168.213.0/24; do
		[ -z "$(ip -4 route show root "$net")" ] || continue
		[ -z "$(ip -4 route show match "$net" | grep -v '^default' || true)" ] || continue
		echo "$net"
		return
	done
	die "no free network for the pods; add one as subnet under [network] in $config"
}

write_config() {
	[ ! -e "$config" ] || return 0
	mkdir -p "$demo"/{certs.d,net.d,logs}
	cat >"$config.tmp" <<END
# Written by hack/run.sh; "cribox config" lists every key.
listen = "unix://$state/cribox.sock"
root = "$root"
state = "$state"
default_runtime = "runc"

[images]
registry_config = "$demo/certs.d"

[network]
conf_dir = "$demo/net.d"
bin_dirs = ["$bin/cni"]
default = true
subnet = "$(free_subnet)"

[runtimes.runc]
path = "$bin/runc"
END
	cat >"$demo/crictl.yaml" <<END
runtime-endpoint: unix://$state/cribox.sock
image-endpoint: unix://$state/cribox.sock
timeout: 30
END
	mv "$config.tmp" "$config"
}

start_fixture() {
	local pid
	if pid=$(fixture_pid); then
		note "the registry runs already (pid $pid)"
		return
	fi
	rm -f "$demo/fixture.ready"
	setsid "$bin/fixture" serve --addr "127.0.0.1:${CRIBOX_DEMO_PORT:-0}" --certs-d "$demo/certs.d" \
		--ready-file "$demo/fixture.ready" >>"$demo/fixture.log" 2>&1 </dev/null 9>&- &
	echo $! >"$demo/fixture.pid"
	within 120 ready_or_gone $! || true
	if [ ! -e "$demo/fixture.ready" ]; then
		show_log "$demo/fixture.log"
		die "the registry did not start"
	fi
	note "images on http://$(sed -n '1s|/.*||p' "$demo/fixture.ready"), log in $demo/fixture.log"
}

ready_or_gone() { [ -e "$demo/fixture.ready" ] || gone "$1"; }

start_daemon() {
	local pid
	if pid=$(daemon_pid); then
		if ! is_stale "$pid"; then
			note "cribox runs already (pid $pid)"
			return
		fi
		note "cribox (pid $pid) is of an older build: replacing it, pods run on"
		end "$pid" cribox
	fi
	if ! launch_daemon; then
		show_log "$demo/daemon.log"
		die "cribox did not answer on $state/cribox.sock"
	fi
	note "socket $state/cribox.sock, log in $demo/daemon.log"
}

pull_images() {
	local image
	for image in "${images[@]}"; do crictl pull "$image" | sed 's/^/    /'; done
}

# write_pod NAME writes the configuration of a pod, and makes the folder of its
# logs as a kubelet would.
write_pod() {
	mkdir -p "$demo/logs/$1"
	cat >"$demo/$1.json" <<END
{
  "metadata": {"name": "$1", "namespace": "demo", "uid": "demo-$1"},
  "hostname": "$1",
  "log_directory": "$demo/logs/$1",
  "labels": {"app": "$1"},
  "linux": {
    "cgroup_parent": "$cgroup/$1",
    "security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": 0}}
  }
}
END
}

# write_container POD NAME IMAGE FIELDS writes the configuration of a container;
# FIELDS are more JSON fields, or nothing.
write_container() {
	cat >"$demo/$1-$2.json" <<END
{
  "metadata": {"name": "$2"},
  "image": {"image": "$3"},
  "log_path": "$2.log",$4
  "labels": {"io.kubernetes.pod.name": "$1", "io.kubernetes.pod.namespace": "demo"},
  "linux": {
    "resources": {"memory_limit_in_bytes": 134217728},
    "security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": 0}}
  }
}
END
}

# ensure_pod NAME prints the id of a pod that is ready: the one that runs, or a
# new one in the place of one that is not.
ensure_pod() {
	local id old
	id=$(crictl pods -q --name "^$1\$" --namespace demo --state Ready)
	if [ -z "$id" ]; then
		old=$(crictl pods -q --name "^$1\$" --namespace demo)
		[ -z "$old" ] || crictl rmp -f "$old" >/dev/null
		id=$(crictl runp "$demo/$1.json")
	fi
	echo "$id"
}

# ensure_container POD-ID POD NAME prints the id of a container that runs.
ensure_container() {
	local id old
	id=$(crictl ps -q --pod "$1" --name "^$3\$" --state Running)
	if [ -z "$id" ]; then
		old=$(crictl ps -aq --pod "$1" --name "^$3\$")
		[ -z "$old" ] || crictl rm -f "$old" >/dev/null
		id=$(crictl create "$1" "$demo/$2-$3.json" "$demo/$2.json")
		crictl start "$id" >/dev/null
	fi
	echo "$id"
}

run_pods() {
	# shellcheck disable=SC2016 # the sidecar's shell expands it
	local ask='echo \"localhost says: $(wget -q -O - http://localhost:8080/)\"'
	write_pod web
	write_container web server docker.io/library/web:1 ""
	write_container web sidecar docker.io/library/busybox:1 "
  \"command\": [\"sh\", \"-c\", \"while true; do $ask; sleep 2; done\"],"
	write_pod visitor
	write_container visitor shell docker.io/library/busybox:1 '
  "command": ["sleep", "1000000"],'
	web=$(ensure_pod web)
	server=$(ensure_container "$web" web server)
	sidecar=$(ensure_container "$web" web sidecar)
	visitor=$(ensure_pod visitor)
	shell=$(ensure_container "$visitor" visitor shell)
	ip=$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$web")
	[ -n "$ip" ] || die "the pod has no address"
}

# in_container ID COMMAND... is crictl exec without the empty lines it adds.
in_container() { crictl exec -s "$@" | sed '/^$/d'; }

visit() { in_container "$shell" timeout 2 wget -q -O - "http://$ip:8080/"; }

sidecar_has_spoken() { crictl logs "$sidecar" 2>/dev/null | grep -q 'localhost says: web'; }

show_pods() {
	within 20 visit || die "the pod at $ip does not answer; see $bin/crictl --config $demo/crictl.yaml logs $server"
	within 20 sidecar_has_spoken || note "the sidecar has not reached its neighbour yet"
	say "the pod web has address $ip, and two containers:"
	crictl ps --pod "$web"
	say "log of the sidecar, which asks its neighbour on localhost:"
	crictl logs --tail 2 "$sidecar"
	say "exec in the server:"
	# shellcheck disable=SC2016 # the container's shell expands it
	in_container "$server" sh -c 'echo "pid $$ on $(hostname), $(nproc) processors"'
	say "the pod visitor asks http://$ip:8080/ and gets:"
	visit
}

show_hints() {
	cat <<END
==> go on by hand:
    alias c='$bin/crictl --config $demo/crictl.yaml'
    c pods; c ps; c images; c stats
    c logs -f ${sidecar:0:13}
    c exec -s ${shell:0:13} wget -q -O - http://$ip:8080/healthz
    c inspectp ${web:0:13}
    kill -9 $(daemon_pid) && make run     # the pods do not notice
    make stop
END
}

need_root "make run"
for tool in cribox fixture crictl runc; do
	[ -x "$bin/$tool" ] || die "bin/$tool is missing: start this with \`make run\`"
done
mkdir -p "$demo"
exec 9>"$demo/.lock"
flock -n 9 || die "another make run or make stop is at work"
write_config
allow_forwarding "$demo/ip_forward.before" "make stop"
timed "starting the registry" start_fixture
timed "starting cribox" start_daemon
timed "pulling ${images[*]}" pull_images
timed "running the pods web and visitor" run_pods
show_pods
show_hints
