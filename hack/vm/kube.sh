#!/usr/bin/env bash
# Makes the machine of up.sh a node of a Kubernetes cluster whose control plane runs here: node9, with
# a kubelet of its own under systemd. The machine has been booted with LINK=ckube9, and install.sh has
# put cribox on it. hack/kube/down.sh ends the control plane.
set -euo pipefail
# shellcheck source=hack/kube/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../kube/common.sh"

node=9
ip=$(node_ip $node)

# payload DIR lays out what goes to the machine, as it lies there.
payload() {
	local dir=$1 etc=$1/etc/kubernetes
	mkdir -p "$etc/manifests" "$dir"/usr/local/bin "$dir"/etc/systemd/{system,network} "$dir"/etc/cribox/config.toml.d
	cp "$bin/kube/kubelet" "$dir/usr/local/bin/"
	cp "$kube/pki/ca.crt" "$kube/pki/node$node."{crt,key} "$etc/"
	sed "s#$kube/pki/#/etc/kubernetes/#g" "$kube/node$node.kubeconfig" >"$etc/kubeconfig"
	kubelet_config >"$etc/kubelet.yaml"
	kubelet_unit >"$dir/etc/systemd/system/kubelet.service"
	printf '[Match]\nName=eth1\n[Network]\nAddress=%s/24\n' "$ip" >"$dir/etc/systemd/network/20-eth1.network"
	printf '[network]\ndefault = true\nsubnet = "pod-cidr"\n' >"$dir/etc/cribox/config.toml.d/70-kube.toml"
	printf 'cgroup_driver = "systemd"\ndefault_runtime = "runc"\n' >"$dir/etc/cribox/config.toml.d/60-setup.toml"
	mkdir -p "$dir/etc/sysctl.d"
	# What the kubelet insists on.
	printf 'vm.overcommit_memory = 1\nkernel.panic = 10\nkernel.panic_on_oops = 1\n' >"$dir/etc/sysctl.d/98-kubelet.conf"
	chmod -R u=rwX,go=rX "$dir"
	chmod 600 "$etc/node$node.key"
}

# kubelet_config leaves at its default what a node of today has: cgroup v2, and the driver that cribox names.
kubelet_config() {
	cat <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		containerRuntimeEndpoint: unix:///run/cribox/cribox.sock
		address: $ip
		healthzBindAddress: $ip
		authentication:
		  anonymous: {enabled: false}
		  webhook: {enabled: true}
		  x509: {clientCAFile: /etc/kubernetes/ca.crt}
		authorization: {mode: Webhook}
		tlsCertFile: /etc/kubernetes/node$node.crt
		tlsPrivateKeyFile: /etc/kubernetes/node$node.key
		staticPodPath: /etc/kubernetes/manifests
		resolvConf: /etc/resolv.conf
		clusterDomain: cluster.local
		evictionHard: {memory.available: 50Mi}
		featureGates: {PodAndContainerStatsFromCRI: true}
		memoryThrottlingFactor: 0.9
		memoryReservationPolicy: TieredReservation
		nodeStatusUpdateFrequency: 5s
		runtimeRequestTimeout: 4m
		shutdownGracePeriod: 30s
		shutdownGracePeriodCriticalPods: 10s
	END
}

kubelet_unit() {
	cat <<-END
		[Unit]
		Description=kubelet
		After=cribox.service network-online.target
		Wants=cribox.service
		[Service]
		ExecStart=/usr/local/bin/kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig /etc/kubernetes/kubeconfig \\
			--hostname-override node$node --node-ip $ip
		Restart=always
		RestartSec=2
		[Install]
		WantedBy=multi-user.target
	END
}

vm() { "$top/hack/vm/ssh.sh" "$@"; }

send() { tar -C "$1" -cf - . | gzip -1 | vm "tar -C / -xzf - --no-same-owner --no-overwrite-dir"; }

join() {
	quietly vm "crictl rmp -af && systemctl daemon-reload && networkctl reload && systemctl restart systemd-sysctl &&
		systemctl restart cribox && systemctl enable -q kubelet && systemctl restart kubelet"
	within 300 kubectl wait --for=condition=Ready "node/node$node" --timeout=10s ||
		{ vm "journalctl -u kubelet -n 40 -o cat --no-pager" >&2 && die "the node did not become Ready"; }
}

need_root "a node on the virtual machine"
[ -e /sys/class/net/ckube$node ] || die "the machine has no second network card: LINK=ckube$node hack/vm/up.sh"
NODES=0 GUESTS=$node "$top/hack/kube/up.sh"
ip link set ckube$node master "$bridge" up
work=$(mktemp -d "$bin/.vm-kube.XXXXXX")
trap 'rm -rf "$work"' EXIT
payload "$work"
timed "copying the kubelet to the machine" send "$work"
timed "waiting for the node" join
kubectl get nodes -o wide
