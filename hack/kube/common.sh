# shellcheck shell=bash disable=SC2034
# Sourced by up.sh and down.sh: where the cluster keeps things, what it uses of
# the host, and who its processes are.

# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/process.sh
. "$top/hack/process.sh"
# shellcheck source=hack/leftovers.sh
. "$top/hack/leftovers.sh"

kube=${CRIBOX_KUBE:-/var/lib/cribox-kube}      # survives a reboot, as on a real node
run=${CRIBOX_KUBE_STATE:-/run/cribox-kube}     # does not
export KUBECONFIG=$kube/admin.kubeconfig
cgroup=/${kube##*/}

# What a cluster has of the host's network. The nodes' network is a bridge; the
# API server and the first node are the host itself, with the bridge's address.
bridge=ckube0
nodes_net=10.221.0
pods_net=10.222.0.0/16
services_net=10.223.0.0/24
api=https://$nodes_net.1:6443
etcd_port=22379
registry=$nodes_net.1:5000

# What the cluster asks itself is no business of a proxy's.
no_proxy=${NO_PROXY:-${no_proxy:-}}
export NO_PROXY=${no_proxy:+$no_proxy,}127.0.0.1,localhost,$nodes_net.0/24,$pods_net,$services_net
export no_proxy=$NO_PROXY

# accepts prints, one per line, the rules of the chain FORWARD without which a firewall (Docker's, for one) would part the nodes.
accepts() {
	local net
	for net in "$nodes_net.0/24" "$pods_net"; do
		printf '%s -m comment --comment cribox-kube -j ACCEPT\n' "-s $net" "-d $net"
	done
}

kubectl() { "$bin/kube/kubectl" "$@"; }

# The folders, cgroups and addresses of node number N.
node_dir() { echo "$kube/node$1"; }
node_state() { echo "$run/n$1"; }
node_cgroup() { echo "$cgroup/node$1"; }
node_ip() { echo "$nodes_net.$1"; }

# nodes_made prints the numbers of the nodes that there are.
nodes_made() { find "$kube" -maxdepth 1 -name 'node[0-9]*' 2>/dev/null | sed 's/.*node//' | sort -n; }

# in_node N COMMAND... runs it where the node's cribox and kubelet run.
in_node() {
	local holder
	holder=$(cat "$run/holder$1.pid")
	shift
	nsenter -t "$holder" -m -n -- "$@"
}

node_socket() { echo "unix://$(node_state "$1")/cribox.sock"; }

# node_crictl N ARG...: both endpoints, since the host may have a crictl.yaml with one.
node_crictl() {
	local n=$1
	shift
	"$bin/crictl" --runtime-endpoint "$(node_socket "$n")" --image-endpoint "$(node_socket "$n")" --timeout 30s "$@"
}
