#!/usr/bin/env bash
# Builds the Debian package of what is in this folder and installs it on the machine of up.sh, with
# runc and the CNI plugins of bin/ and a registry of test images beside it. Can be repeated: it
# replaces what has changed, and restarts the daemon.
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

programs=(runc crictl critest fixture)

# payload DIR lays out what goes to the machine, as it lies there.
payload() {
	local dir=$1 p
	mkdir -p "$dir"/usr/local/bin "$dir"/opt/cni/bin "$dir"/etc/systemd/system "$dir"/etc/cribox/config.toml.d \
		"$dir"/etc/modules-load.d "$dir"/etc/sysctl.d "$dir"/root
	for p in "${programs[@]}"; do cp "$bin/$p" "$dir/usr/local/bin/$p"; done
	cp "$bin"/cni/* "$dir/opt/cni/bin/"
	ARCHITECTURES=amd64 FORMATS=deb OUT=$dir/root/packages quietly "$top/hack/packages/build.sh"
	(cd "$top/crictl-tests/fixture/toolbox" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$dir/usr/local/bin/toolbox" ./*.go)
	printf 'overlay\nbr_netfilter\n' >"$dir/etc/modules-load.d/kubernetes.conf"
	printf 'net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\n' >"$dir/etc/sysctl.d/99-kubernetes.conf"
	printf 'runtime-endpoint: unix:///run/cribox/cribox.sock\nimage-endpoint: unix:///run/cribox/cribox.sock\ntimeout: 120\n' \
		>"$dir/etc/crictl.yaml"
	printf '[network]\ndefault = true\n[runtimes.crun]\npath = "/usr/bin/crun"\n' >"$dir/etc/cribox/config.toml.d/50-vm.toml"
	fixture_unit >"$dir/etc/systemd/system/fixture.service"
	chmod -R u=rwX,go=rX "$dir"
}

# fixture_unit prints the unit of the registry, which is up when its images can be pulled.
fixture_unit() {
	cat <<-'END'
		[Unit]
		Description=registry of test images
		[Service]
		Environment=FIXTURE_TOOLBOX=/usr/local/bin/toolbox
		ExecStartPre=/bin/rm -f /run/fixture.ready
		ExecStart=/usr/local/bin/fixture serve --certs-d /etc/cribox/certs.d --ready-file /run/fixture.ready \
			--mirror docker.io,registry.k8s.io,k8s.gcr.io,gcr.io
		ExecStartPost=/bin/sh -c 'until [ -e /run/fixture.ready ]; do sleep 0.2; done'
		TimeoutStartSec=300
		[Install]
		WantedBy=multi-user.target
	END
}

# send compresses, because encryption is slow there.
send() { tar -C "$1" -cf - . | gzip -1 | vm "tar -C / -xzf - --no-same-owner --no-overwrite-dir"; }

start() {
	quietly vm 'dpkg --force-confold -i /root/packages/cribox_*.deb && rm -rf /root/packages &&
		systemctl daemon-reload && systemctl restart systemd-modules-load systemd-sysctl &&
		systemctl enable -q cribox fixture && systemctl restart fixture cribox && timeout 120 crictl version && cribox check'
}

vm_pid >/dev/null || die "no machine runs: hack/vm/up.sh"
work=$(mktemp -d "$run/payload.XXXXXX")
trap 'rm -rf "$work"' EXIT
timed "building the package" payload "$work"
timed "copying cribox and its tools to the machine" send "$work"
timed "starting cribox and the registry there" start
