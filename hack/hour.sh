#!/usr/bin/env bash
# The first hour of somebody who is new to cribox, as a script: a node from the package to its first
# pod, an image without a registry, a mirror that is dead and one that hangs, a full disk, and a
# migration from containerd and back. It prints the commands and what they answer, and fails where one
# does not say what it should. All of it is in one folder, which is gone at the end. As root.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/process.sh
. "$top/hack/process.sh"
# shellcheck source=hack/leftovers.sh
. "$top/hack/leftovers.sh"

hour=${HOUR_DIR:-/var/tmp/cribox-hour} # the node
subnet=${HOUR_SUBNET:-10.214.0.0/24}   # of its pods
# HOUR_PACKAGE: a Debian package, in the place of one that is built here
programs=${CRIBOX_BIN:-$bin}
root=$hour/lib                         # a disk of its own, so that it can be full
config=$hour/etc/config.toml
daemon=
fixture=
last=$hour/last # what the last command printed

cribox() { "$hour/usr/bin/cribox" "$@" --config "$config"; }
crictl() { "$programs/crictl" --config "$hour/etc/crictl.yaml" "$@"; }

# shows COMMAND... prints a command as a person types it, runs it and prints its answer.
shows() {
	local status=0
	printf '$ %s\n' "${*//"$hour"/}"
	"$@" >"$last" 2>&1 || status=$?
	sed "s#$hour##g; s/^/    /" "$last"
	return $status
}

# fails COMMAND... is shows for a command that has to fail.
fails() { if shows "$@"; then die "this should have failed"; fi; }

# says TEXT: the last command has printed this.
says() { grep -q -- "$1" "$last" || die "the answer does not say \"$1\""; }

answers() { crictl --timeout 2s version >/dev/null 2>&1; }
answers_or_gone() { answers || gone "$daemon"; }

start_daemon() {
	setsid "$hour/usr/bin/cribox" serve --config "$config" >>"$hour/daemon.log" 2>&1 </dev/null &
	daemon=$!
	within 60 answers_or_gone || true
	answers || { show_log "$hour/daemon.log" && die "the daemon did not start"; }
}

restart_daemon() {
	end "$daemon" cribox
	start_daemon
}

# start_fixture starts a registry with test images. Its address is then $registry.
start_fixture() {
	rm -f "$hour/fixture.ready"
	setsid "$programs/fixture" serve --addr 127.0.0.1:0 --ready-file "$hour/fixture.ready" >>"$hour/fixture.log" 2>&1 </dev/null &
	fixture=$!
	within 120 test -e "$hour/fixture.ready" || { show_log "$hour/fixture.log" && die "the registry did not start"; }
	registry=$(sed -n '1s|/.*||p' "$hour/fixture.ready")
}

stop_fixture() {
	kill -CONT "$fixture"
	end "$fixture" fixture
}

# mirror ADDRESS makes it the mirror of docker.io, which is out of reach itself.
mirror() {
	mkdir -p "$hour/etc/certs.d/docker.io"
	printf 'server = "http://127.0.0.1:1"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$1" >"$hour/etc/certs.d/docker.io/hosts.toml"
}

# run_pod NAME IMAGE runs a pod whose container prints a line, and waits for the line.
run_pod() {
	local pod container
	mkdir -p "$hour/logs/$1"
	printf '{"metadata": {"name": "%s", "namespace": "default", "uid": "%s"}, "log_directory": "%s"}\n' \
		"$1" "$1" "$hour/logs/$1" >"$hour/pod.json"
	printf '{"metadata": {"name": "main"}, "image": {"image": "%s"}, "log_path": "main.log", "command": ["sh", "-c", "echo hello from %s; exec sleep 1000000"]}\n' \
		"$2" "$1" >"$hour/container.json"
	shows crictl runp "$hour/pod.json"
	pod=$(cat "$last")
	shows crictl create "$pod" "$hour/container.json" "$hour/pod.json"
	container=$(cat "$last")
	shows crictl start "$container"
	within 60 has_spoken "$container" "$1" || die "the container of $1 does not print its line"
	shows crictl logs "$container"
}

has_spoken() { crictl logs "$1" 2>/dev/null | grep -q "hello from $2"; }

from_the_package() {
	local package=${HOUR_PACKAGE:-}
	if [ -z "$package" ]; then
		ARCHITECTURES=$(go env GOARCH) FORMATS=deb OUT=$hour/package quietly "$top/hack/packages/build.sh"
		package=$(echo "$hour"/package/*.deb)
	fi
	dpkg-deb -x "$package" "$hour"
	mount -t tmpfs -o size=96m cribox-hour "$root"
	mkdir -p "$hour"/{net.d,etc/certs.d}
	cat >"$config" <<-END
		listen = "unix://$hour/run/cribox.sock"
		root = "$root"
		state = "$hour/run"
		[images]
		registry_config = "$hour/etc/certs.d"
		[network]
		conf_dir = "$hour/net.d"
		default = true
		subnet = "$subnet"
		[runtimes.runc]
		path = "$programs/runc"
	END
	printf 'runtime-endpoint: unix://%s/run/cribox.sock\nimage-endpoint: unix://%s/run/cribox.sock\ntimeout: 60\n' \
		"$hour" "$hour" >"$hour/etc/crictl.yaml"
	shows "$hour/usr/bin/cribox" version
	shows cribox check
	says 'ok .*overlayfs on root'
	start_daemon
	shows crictl info -q
}

without_a_registry() {
	start_fixture
	mirror "$registry"
	note "a machine that reaches a registry makes the archives:"
	shows cribox image pull docker.io/library/busybox:1
	shows cribox image save docker.io/library/busybox:1 -o "$hour/busybox.tar"
	shows cribox image rm docker.io/library/busybox:1
	stop_fixture
	note "this node has no registry any more. By hand:"
	shows cribox image load --name example.test/by-hand:1 "$hour/busybox.tar"
	note "or by the import folder, which is read at start and when something is put there:"
	cp "$hour/busybox.tar" "$root/import/.busybox.tar" && mv "$root/import/.busybox.tar" "$root/import/busybox.tar"
	within 60 listed docker.io/library/busybox:1 || die "the archive in the import folder is not loaded"
	shows cribox image ls
	run_pod first docker.io/library/busybox:1
}

listed() { cribox image ls | grep -q "$1"; }

dead_mirror() {
	mirror 127.0.0.1:2
	note "nobody listens at the address of the mirror:"
	fails timeout 120 "$programs/crictl" --config "$hour/etc/crictl.yaml" pull docker.io/library/web:1
	says RegistryUnavailable
	says http://127.0.0.1:2
	note "somebody listens there and does not answer. Who waits for an image asks:"
	start_fixture
	mirror "$registry"
	kill -STOP "$fixture"
	cribox image pull docker.io/library/web:1 >"$hour/pull.out" 2>&1 &
	local pull=$!
	within 60 waits "waiting for http://$registry" || die "the pull is not listed with the mirror"
	shows cribox image pulls
	shows cribox why docker.io/library/web:1
	says 'IS AT IT'
	local line="a step takes long.*waiting for http://$registry"
	within 60 grep -q "$line" "$hour/daemon.log" || die "the log does not name the mirror that hangs"
	shows grep -m 1 "$line" "$hour/daemon.log"
	note "the mirror is back, and the pull goes on by itself:"
	kill -CONT "$fixture"
	wait "$pull" || die "the pull has failed: $(cat "$hour/pull.out")"
	shows tail -n 1 "$hour/pull.out"
	shows cribox image rm docker.io/library/web:1
}

waits() { cribox image pulls | grep -q "$1"; }

full_disk() {
	head -c 200M /dev/zero >"$root/somebodys-file" 2>/dev/null || true
	fails cribox image pull docker.io/library/web:1
	says 'no space left on device\|free space'
	shows df -h "$root"
	note "pods run on, and can be removed:"
	shows crictl ps -q
	[ -s "$last" ] || die "no container runs any more"
	rm "$root/somebodys-file"
	shows cribox image prune
	shows cribox image pull docker.io/library/web:1
	stop_fixture
}

from_containerd() {
	local host=$hour/host # where the files of containerd are
	mkdir -p "$host/etc/containerd"
	printf 'version = 3\n[plugins."io.containerd.cri.v1.images"]\nmax_concurrent_downloads = 5\n' >"$host/etc/containerd/config.toml"
	"$programs/fixture" containerd "$host/var/lib/containerd" app:1 example.test/team/app:1
	shows cribox migrate containerd --host "$host" --dry-run
	says 'would be written'
	shows cribox migrate containerd --host "$host"
	restart_daemon
	shows cribox image ls
	says example.test/team/app:1
	run_pod second example.test/team/app:1
	note "and back:"
	shows cribox migrate containerd --host "$host" --undo
	says removed
	[ ! -e "$config.d/50-containerd.toml" ] || die "--undo has left the settings"
	restart_daemon
}

# clean_up can be called at any time.
clean_up() {
	if [ -n "$fixture" ] && ! gone "$fixture"; then stop_fixture; fi
	if [ -n "$daemon" ]; then
		crictl rmp -af >/dev/null 2>&1 || true
		end "$daemon" cribox
		cribox shutdown >/dev/null || note "shim and logger are still there"
	fi
	wait
	if mountpoint -q "$root"; then umount "$root"; fi
	restore_forwarding "$hour/ip_forward.before"
	rm -rf --one-file-system "$hour"
}

need_root "make hour"
[ ! -e "$hour" ] || die "$hour is there already: remove what an earlier run has left"
for tool in crictl fixture runc; do [ -x "$programs/$tool" ] || die "bin/$tool is missing: start this with \`make hour\`"; done
mkdir -p "$root" "$hour/run"
trap clean_up EXIT
allow_forwarding "$hour/ip_forward.before" "the end of this"
timed "a node from the package" from_the_package
timed "an image without a registry" without_a_registry
timed "a mirror that is dead, and one that hangs" dead_mirror
timed "a full disk" full_disk
timed "from containerd, and back" from_containerd
say "removing everything"
