#!/usr/bin/env bash
# Starts a Kubernetes cluster whose nodes run on cribox: etcd, the control plane,
# and on each of NODES nodes a kubelet, a kube-proxy and a cribox of its own. What
# runs already is kept. BARE names further nodes by their numbers ("3 4"): they come
# up without a network. GUESTS names nodes that somebody else starts, on machines that
# join the bridge: they get a certificate and a kubeconfig, and NODES may be 0.
# `make kube-up` has built everything in bin/ before.
set -euo pipefail
# shellcheck source=hack/kube/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=${NODES:-1}
bare=${BARE:-}     # numbers of further nodes, which come up without a network
guests=${GUESTS:-} # numbers of nodes that are started elsewhere

# start NAME COMMAND... starts a daemon unless it runs, its log and pid under its name.
start() {
	local name=$1
	shift
	if running "$name"; then return; fi
	setsid "$@" >>"$kube/log/$name.log" 2>&1 </dev/null 9>&- &
	echo $! >"$run/$name.pid"
}

# running NAME: its process lives. nsenter and unshare have become it by exec.
running() {
	local pid
	pid=$(cat "$run/$1.pid" 2>/dev/null) || return 1
	! gone "$pid"
}

# await NAME SECONDS COMMAND... until the command succeeds; with the daemon's log when it ends first or never comes to it.
await() {
	local name=$1 seconds=$2 came=
	shift 2
	# shellcheck disable=SC2317,SC2329 # called by within
	come_or_gone() {
		if "$@"; then came=yes; else ! running "$name"; fi
	}
	within "$seconds" come_or_gone "$@" || true
	[ -z "$came" ] || return 0
	show_log "$kube/log/$name.log"
	die "$name did not come up"
}

# --- certificates ---------------------------------------------------------

# issue NAME SUBJECT [SAN] makes NAME.key and NAME.crt, signed by the cluster's authority, unless they are there.
issue() {
	local name=$kube/pki/$1 subject=$2 san=${3:-}
	[ ! -e "$name.crt" ] || return 0
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" -keyout "$name.key" -out "$name.csr" 2>/dev/null
	{
		echo "extendedKeyUsage=clientAuth,serverAuth"
		[ -z "$san" ] || echo "subjectAltName=$san"
	} >"$name.ext"
	openssl x509 -req -days 30 -in "$name.csr" -CA "$kube/pki/ca.crt" -CAkey "$kube/pki/ca.key" \
		-extfile "$name.ext" -out "$name.crt.tmp" 2>/dev/null
	rm "$name.csr" "$name.ext"
	mv "$name.crt.tmp" "$name.crt"
}

make_pki() {
	(
		umask 077
		mkdir -p "$kube/pki"
		[ -e "$kube/pki/ca.crt" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=cribox-kube \
			-keyout "$kube/pki/ca.key" -out "$kube/pki/ca.crt" 2>/dev/null
		[ -e "$kube/pki/sa.pub" ] || {
			openssl genrsa -out "$kube/pki/sa.key" 2048 2>/dev/null
			openssl rsa -in "$kube/pki/sa.key" -pubout -out "$kube/pki/sa.pub" 2>/dev/null
		}
		issue apiserver /CN=kube-apiserver \
			"IP:$nodes_net.1,IP:127.0.0.1,IP:${services_net%.0/24}.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
		issue apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
		for who in admin:/O=system:masters/CN=admin controller-manager:/CN=system:kube-controller-manager \
			scheduler:/CN=system:kube-scheduler proxy:/CN=system:kube-proxy; do
			issue "${who%%:*}" "${who#*:}"
			write_kubeconfig "${who%%:*}"
		done
	)
}

write_kubeconfig() {
	[ ! -e "$kube/$1.kubeconfig" ] || return 0
	cat >"$kube/$1.kubeconfig.tmp" <<END
apiVersion: v1
kind: Config
clusters: [{name: cribox, cluster: {server: "$api", certificate-authority: "$kube/pki/ca.crt"}}]
users: [{name: "$1", user: {client-certificate: "$kube/pki/$1.crt", client-key: "$kube/pki/$1.key"}}]
contexts: [{name: cribox, context: {cluster: cribox, user: "$1"}}]
current-context: cribox
END
	mv "$kube/$1.kubeconfig.tmp" "$kube/$1.kubeconfig"
}

# --- the host's part of the network ----------------------------------------

make_network() {
	allow_forwarding "$kube/ip_forward.before" "make kube-down"
	ip link show "$bridge" >/dev/null 2>&1 || {
		[ -z "$(ip -4 route show root "$nodes_net.0/24")" ] || die "$nodes_net.0/24 is in use on this host"
		ip link add "$bridge" type bridge
	}
	ip addr replace "$nodes_net.1/24" dev "$bridge"
	ip link set "$bridge" up
	accept_forwarding
}

# accept_forwarding where the host drops what it is not told to forward.
accept_forwarding() {
	local rule
	[[ $(iptables -S FORWARD 2>/dev/null) == "-P FORWARD DROP"* ]] || return 0
	note "letting the host forward what is the cluster's (make kube-down takes the rules away)"
	while read -ra rule; do
		iptables -w -C FORWARD "${rule[@]}" 2>/dev/null || iptables -w -I FORWARD "${rule[@]}"
	done < <(accepts)
}

# --- control plane ----------------------------------------------------------

start_control_plane() {
	local pki=$kube/pki
	local images=()
	! has_nodes || images=(--image "flannel:1=$kube/flannel")
	start registry "$bin/fixture" serve --addr "$registry" --mirror "docker.io,registry.k8s.io,$registry" --certs-d "$kube/certs.d" --ready-file "$run/registry.ready" "${images[@]}"
	start etcd "$bin/kube/etcd" --data-dir "$kube/etcd" --unsafe-no-fsync --logger zap --log-level warn \
		--listen-client-urls "https://127.0.0.1:$etcd_port" --advertise-client-urls "https://127.0.0.1:$etcd_port" \
		--client-cert-auth --trusted-ca-file "$pki/ca.crt" --cert-file "$pki/apiserver.crt" --key-file "$pki/apiserver.key" \
		--listen-peer-urls "https://127.0.0.1:$((etcd_port + 1))" \
		--peer-client-cert-auth --peer-trusted-ca-file "$pki/ca.crt" --peer-cert-file "$pki/apiserver.crt" --peer-key-file "$pki/apiserver.key"
	await etcd 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$etcd_port" # the API server waits for it for 20 seconds only
	start apiserver "$bin/kube/kube-apiserver" --etcd-servers "https://127.0.0.1:$etcd_port" \
		--etcd-cafile "$pki/ca.crt" --etcd-certfile "$pki/apiserver.crt" --etcd-keyfile "$pki/apiserver.key" \
		--bind-address "$nodes_net.1" --advertise-address "$nodes_net.1" --secure-port 6443 --service-cluster-ip-range "$services_net" \
		--client-ca-file "$pki/ca.crt" --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
		--kubelet-certificate-authority "$pki/ca.crt" --kubelet-client-certificate "$pki/apiserver-kubelet.crt" \
		--kubelet-client-key "$pki/apiserver-kubelet.key" --kubelet-preferred-address-types InternalIP \
		--service-account-issuer https://kubernetes.default.svc --service-account-key-file "$pki/sa.pub" \
		--service-account-signing-key-file "$pki/sa.key" \
		--authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
		--feature-gates ContainerStopSignals=true
	await apiserver 120 kubectl get --raw /readyz
	start controller-manager "$bin/kube/kube-controller-manager" --kubeconfig "$kube/controller-manager.kubeconfig" \
		--allocate-node-cidrs --cluster-cidr "$pods_net" --service-cluster-ip-range "$services_net" \
		--service-account-private-key-file "$pki/sa.key" --root-ca-file "$pki/ca.crt" --use-service-account-credentials \
		--leader-elect=false --bind-address 127.0.0.1
	start scheduler "$bin/kube/kube-scheduler" --kubeconfig "$kube/scheduler.kubeconfig" --leader-elect=false --bind-address 127.0.0.1
	await registry 60 test -e "$run/registry.ready"
	await controller-manager 60 kubectl get serviceaccount default
}

make_flannel() {
	"$top/hack/kube/flannel.sh" "$kube/flannel.new"
	mv "$kube/flannel.new" "$kube/flannel"
}

# --- nodes --------------------------------------------------------------------

# hold_node N makes the node's mount namespace, and from the second node on its network: a process that only sleeps holds both.
hold_node() {
	local n=$1 net=() own=()
	if running "holder$n"; then return; fi
	[ "$n" = 1 ] || net=(--net)
	! is_bare "$n" || own=("$(node_dir "$n")/own" "$run")
	start "holder$n" unshare --mount --propagation private "${net[@]}" "$top/hack/kube/hold.sh" "$run/holder$n.ready" "${own[@]}"
	await "holder$n" 10 test -e "$run/holder$n.ready"
	[ "$n" = 1 ] || join_network "$n"
}

# is_bare N: the node comes up without a network, and waits for an add-on to bring one.
is_bare() { [[ " $bare " == *" $1 "* ]]; }

join_network() {
	local n=$1
	ip link add "ckube$n" type veth peer name eth0 netns "$(cat "$run/holder$n.pid")"
	ip link set "ckube$n" master "$bridge" up
	in_node "$n" ip addr add "$(node_ip "$n")/24" dev eth0
	in_node "$n" ip link set eth0 up
	in_node "$n" ip route add default via "$nodes_net.1"
	in_node "$n" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}

# identify_node N: what its kubelet shows to the API server, and the other way round.
identify_node() {
	(umask 077 && issue "node$1" "/O=system:nodes/CN=system:node:node$1" "IP:$(node_ip "$1"),DNS:node$1")
	write_kubeconfig "node$1"
}

write_node_files() {
	local n=$1 dir ip
	dir=$(node_dir "$n") ip=$(node_ip "$n")
	mkdir -p "$dir"/{net.d,manifests,logs,kubelet} "$(node_state "$n")"
	identify_node "$n"
	cat >"$dir/cribox.toml" <<END
listen = "unix://$(node_state "$n")/cribox.sock"
root = "$dir/root"
state = "$(node_state "$n")"
cgroup_driver = "cgroupfs" # below $cgroup, where kube-down looks, whoever else makes cgroups here

[images]
registry_config = "$kube/certs.d"
pinned = ["*/pause:*"]

[network]
$(network "$n")

[runtimes.runc]
path = "$bin/runc"
END
	cat >"$dir/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$(node_state "$n")/cribox.sock
address: $ip
healthzBindAddress: $ip
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $kube/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $kube/pki/node$n.crt
tlsPrivateKeyFile: $kube/pki/node$n.key
staticPodPath: $dir/manifests
podLogsDir: $dir/logs
volumePluginDir: $dir/volume-plugins
resolvConf: /etc/resolv.conf
clusterDomain: cluster.local
failCgroupV1: false
failSwapOn: false
cgroupRoot: $(node_cgroup "$n")
enforceNodeAllocatable: []
registerWithTaints: [$(taints "$n")]
evictionHard: {memory.available: 50Mi}
# The disk is the host's. A kubelet that finds it full forgets which pods may use which images.
imageGCHighThresholdPercent: 100
featureGates: {PodAndContainerStatsFromCRI: true, ContainerStopSignals: true}
nodeStatusUpdateFrequency: 5s
$([ "$n" != "$nodes" ] || tidy)
END
	cat >"$dir/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $kube/proxy.kubeconfig}
clusterCIDR: $pods_net
hostnameOverride: node$n
bindAddress: $ip
healthzBindAddress: $ip:10256
metricsBindAddress: $ip:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
}

# network N: the node's own with the range that the kubelet names, or none.
network() {
	if is_bare "$1"; then
		cat <<END
conf_dir = "/etc/cni/net.d"
bin_dirs = ["/opt/cni/bin", "$bin/cni"]
END
		return
	fi
	cat <<END
conf_dir = "$(node_dir "$1")/net.d"
bin_dirs = ["$bin/cni"]
default = true
subnet = "pod-cidr"
no_masquerade = ["$pods_net"]
END
}

# taints N: a bare node takes no pod but those that are meant for it.
taints() { ! is_bare "$1" || printf '{key: bare, effect: NoSchedule}'; }

# tidy: the last node's kubelet removes images early, and rotates logs that are small.
tidy() {
	cat <<END
imageMinimumGCAge: 1m0s
imageMaximumGCAge: 2m0s
containerLogMaxSize: 64Ki
containerLogMaxFiles: 30
containerLogMonitorInterval: 3s
END
}

# make_cgroups: the kubelet wants its root to be there, in every hierarchy, with all controllers.
make_cgroups() {
	local root
	awk '/ - cgroup2? / {print $5}' /proc/self/mountinfo | while read -r root; do
		mkdir -p "$root$(node_cgroup "$1")"
		[ ! -e "$root/cpuset.cpus" ] || copy_cpuset "$root" "$cgroup" "$(node_cgroup "$1")"
	done
	[ ! -e /sys/fs/cgroup/cgroup.controllers ] || hand_down "" "$cgroup" "$(node_cgroup "$1")"
}

# hand_down: on cgroup v2 a child has the controllers that its parent gives it.
hand_down() {
	local cg controller controllers
	for cg; do
		read -ra controllers <"/sys/fs/cgroup$cg/cgroup.controllers"
		for controller in "${controllers[@]}"; do
			echo "+$controller" >"/sys/fs/cgroup$cg/cgroup.subtree_control" || true # the kubelet says which it lacks
		done
	done
}

# copy_cpuset: on cgroup v1 a new cpuset is empty, and nothing can run in it.
copy_cpuset() {
	local root=$1 cg file
	shift
	for cg; do
		for file in cpuset.cpus cpuset.mems; do
			[ -n "$(cat "$root$cg/$file")" ] || cat "$root/$file" >"$root$cg/$file"
		done
	done
}

start_node() {
	local n=$1 dir
	dir=$(node_dir "$n")
	hold_node "$n"
	write_node_files "$n"
	make_cgroups "$n"
	start "cribox$n" nsenter -t "$(cat "$run/holder$n.pid")" -m -n -- "$bin/cribox" serve --config "$dir/cribox.toml"
	await "cribox$n" 30 node_crictl "$n" version
	start "kubelet$n" nsenter -t "$(cat "$run/holder$n.pid")" -m -n -- "$bin/kube/kubelet" --config "$dir/kubelet.yaml" \
		--kubeconfig "$kube/node$n.kubeconfig" --hostname-override "node$n" --node-ip "$(node_ip "$n")" --root-dir "$dir/kubelet" --v 1
	start "proxy$n" nsenter -t "$(cat "$run/holder$n.pid")" -m -n -- "$bin/kube/kube-proxy" --config "$dir/proxy.yaml"
}

node_ready() {
	kubectl wait --for=condition=Ready "node/node$1" --timeout=10s && [ -n "$(pod_cidr "$1")" ]
}
pod_cidr() { kubectl get node "node$1" -o 'jsonpath={.spec.podCIDR}'; }

# route_pods: each node reaches the pods of the others through their node, as a cloud's routes would.
route_pods() {
	local from to
	for from in $(seq "$nodes"); do
		for to in $(seq "$nodes"); do
			[ "$from" = "$to" ] || in_node "$from" ip route replace "$(pod_cidr "$to")" via "$(node_ip "$to")"
		done
	done
}

start_nodes() {
	local n
	for n in $(seq "$nodes"); do start_node "$n"; done
	for n in $(seq "$nodes"); do await "kubelet$n" 120 node_ready "$n"; done
	route_pods
	for n in $bare; do start_node "$n"; done
	for n in $guests; do identify_node "$n"; done
}

has_nodes() { [ "$nodes" -gt 0 ]; }

need_root "make kube-up"
least=1
[ -z "$guests" ] || least=0
[[ $nodes =~ ^[$least-9]$ ]] || die "NODES=$nodes: want $least to 9"
for n in $bare $guests; do
	[[ $n =~ ^[1-9]$ ]] && [ "$n" -gt "$nodes" ] || die "BARE=$bare GUESTS=$guests: want numbers above NODES=$nodes, up to 9"
done
tools=(cribox fixture crictl runc kube/kubelet kube/etcd)
! has_nodes || tools+=(flannel/flannel)
for tool in "${tools[@]}"; do
	[ -x "$bin/$tool" ] || die "bin/$tool is missing: start this with \`make kube-up\`"
done
mkdir -p "$kube/log" "$run"
exec 9>"$kube/.lock"
flock -n 9 || die "another make kube-up or make kube-down is at work"
timed "making certificates" make_pki
! has_nodes || [ -d "$kube/flannel" ] || timed "collecting flannel's image" make_flannel
make_network
timed "starting the control plane" start_control_plane
timed "starting $nodes node(s) on cribox" start_nodes
has_nodes || exit 0
kubectl get nodes -o wide
cat <<END
==> go on by hand:
    export KUBECONFIG=$KUBECONFIG PATH=$bin/kube:\$PATH
    kubectl create deployment web --image=docker.io/library/web:1
    make kube-down
END
