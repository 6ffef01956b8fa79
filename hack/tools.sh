#!/usr/bin/env bash
# Installs what building, running and testing cribox needs: Debian packages that
# are missing, and bin/runc, bin/cni/*, bin/crictl, bin/critest at the versions
# of versions.env. What is there already is left alone.
#
#   tools.sh            all of that
#   tools.sh kube       and what a Kubernetes cluster needs besides
#   tools.sh containerd and bin/containerd/*
#   tools.sh lint       bin/golangci-lint only
#   tools.sh arm64      bin/arm64/{runc,cni,crictl,critest} only; arm64/debian.sh has run before
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/versions.env
. "$top/hack/versions.env"
# shellcheck source=hack/apt.sh
. "$top/hack/apt.sh"

packages=(
	ca-certificates                           # Go's module downloads
	gcc libc6-dev libseccomp-dev pkg-config   # runc, and the race detector
	iproute2 iptables nftables kmod           # what the network and its plugins execute
	busybox-static                            # content of the test images
	strace                                    # the gate that counts programs and syncs
	dbus-daemon                               # the bus on which a test plays systemd
	util-linux                                # critest runs ipcmk
)
kube_packages=(
	openssl   # certificates of the cluster
	conntrack # kube-proxy forgets connections with it
	bsdutils  # script, which gives kubectl a terminal
)

# source_of MODULE VERSION SUM DIR puts a writable copy of the module into DIR.
# A copy, because a module with a main package of its own is built with its own
# go.mod, and the module cache is read-only.
source_of() {
	local json dir sum
	patiently download "$1@v$2" || die "download $1: $(sed -n 's/^\t"Error": "\(.*\)",\{0,1\}$/\1/p' <<<"$json")"
	dir=$(sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p' <<<"$json")
	sum=$(sed -n 's/^\t"Sum": "\(.*\)",\{0,1\}$/\1/p' <<<"$json")
	[ "$sum" = "$3" ] || die "$1 v$2 has checksum $sum, versions.env says $3"
	cp -r --no-preserve=mode "$dir/." "$4"
}

# download MODULE sets json to what the go command says of it.
download() { json=$(cd / && go mod download -json "$1"); }

# go_here COMMAND... runs the go command in the current folder as its own main module.
go_here() { GOWORK=off GOFLAGS="-buildvcs=false -mod=readonly -trimpath" patiently quietly go "$@"; }
go_build() { go_here build "$@"; }

build_runc() {
	source_of "$RUNC_MODULE" "$RUNC_VERSION" "$RUNC_SUM" "$1"
	cd "$1"
	# Static like upstream's releases: runc starts twice per container, and each
	# start saves the dynamic loader's work.
	CGO_ENABLED=1 go_build -tags "seccomp urfave_cli_no_docs netgo osusergo" \
		-ldflags "-s -w -linkmode external -extldflags -static" -o "$1/out/runc" .
}

build_cni() {
	local plugins
	read -ra plugins <<<"$CNI_PLUGINS"
	source_of "$CNI_MODULE" "$CNI_VERSION" "$CNI_SUM" "$1"
	cd "$1"
	plugins=("${plugins[@]/#/./plugins/}")
	mkdir -p out/cni
	CGO_ENABLED=0 go_build -ldflags "-s -w -X $CNI_MODULE/pkg/utils/buildversion.BuildVersion=v$CNI_VERSION" \
		-o "$1/out/cni/" "${plugins[@]}"
}

build_crictl() {
	source_of "$CRICTL_MODULE" "$CRICTL_VERSION" "$CRICTL_SUM" "$1"
	cd "$1"
	CGO_ENABLED=0 go_build -ldflags "-s -w -X $CRICTL_MODULE/pkg/version.Version=v$CRICTL_VERSION" \
		-o "$1/out/crictl" ./cmd/crictl
}

build_critest() {
	source_of "$CRICTL_MODULE" "$CRICTL_VERSION" "$CRICTL_SUM" "$1"
	cd "$1"
	CGO_ENABLED=0 go_here test -c -ldflags "-s -w -X $CRICTL_MODULE/pkg/version.Version=v$CRICTL_VERSION" \
		-o "$1/out/critest" ./cmd/critest
}

# build_ginkgo builds the program that critest starts when it is to run specs
# beside each other, at the version that critest itself is made of.
build_ginkgo() {
	source_of "$CRICTL_MODULE" "$CRICTL_VERSION" "$CRICTL_SUM" "$1"
	cd "$1"
	CGO_ENABLED=0 go_build -ldflags "-s -w" -o "$1/out/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
}

# build_kube builds Kubernetes and etcd in one go: they share most of their packages.
build_kube() {
	local programs version=k8s.io/component-base/version minor=${KUBE_VERSION#*.}
	read -ra programs <<<"$KUBE_PROGRAMS"
	source_of "$KUBE_MODULE" "$KUBE_VERSION" "$KUBE_SUM" "$1"
	cd "$1"
	sed -i "s#^\t\(k8s.io/[a-z-]*\) => ./staging/src/.*#\t\1 => \1 v$KUBE_STAGING#" go.mod
	mkdir -p out/kube
	# mod: the sums of the published modules are not in Kubernetes' own go.sum.
	CGO_ENABLED=0 GOWORK=off GOFLAGS="-buildvcs=false -mod=mod -trimpath" patiently quietly go build -ldflags "-s -w \
		-X $version.gitVersion=v$KUBE_VERSION -X $version.gitMajor=1 -X $version.gitMinor=${minor%%.*}" \
		-o "$1/out/kube/" "${programs[@]/#/./cmd/}" go.etcd.io/etcd/server/v3
	mv out/kube/server out/kube/etcd
}

# build_flannel leaves out two backends: one for a cloud, whose library is not to be had everywhere, and one that needs a
# C compiler.
build_flannel() {
	source_of "$FLANNEL_MODULE" "$FLANNEL_VERSION" "$FLANNEL_SUM" "$1"
	cd "$1"
	sed -i '/pkg\/backend\/\(tencentvpc\|udp\)"/d' main.go
	mkdir -p out/flannel
	CGO_ENABLED=0 go_build -ldflags "-s -w -X $FLANNEL_MODULE/pkg/version.Version=v$FLANNEL_VERSION" \
		-o "$1/out/flannel/" . ./cmd/install_conf
}

# build_containerd builds it as its own Makefile does for a release that is linked statically.
build_containerd() {
	source_of "$CONTAINERD_MODULE" "$CONTAINERD_VERSION" "$CONTAINERD_SUM" "$1"
	cd "$1"
	local version="-s -w -X $CONTAINERD_MODULE/version.Version=v$CONTAINERD_VERSION" tags="urfave_cli_no_docs osusergo netgo static_build"
	mkdir -p out/containerd
	CGO_ENABLED=0 go_build -tags "$tags" -ldflags "$version" -o "$1/out/containerd/" ./cmd/containerd
	CGO_ENABLED=0 go_build -tags "$tags no_grpc" -ldflags "$version" -o "$1/out/containerd/" ./cmd/containerd-shim-runc-v2
}

# build_prometheus takes Prometheus and promtool out of Debian's package, which would start a service if
# it were installed.
build_prometheus() {
	cd "$1"
	quietly apt-get -q -o Acquire::Retries=3 download prometheus || {
		quietly apt-get -q -o Acquire::Retries=3 update
		quietly apt-get -q -o Acquire::Retries=3 download prometheus
	}
	dpkg-deb -x prometheus_*.deb unpacked
	mkdir -p out/prometheus
	mv unpacked/usr/bin/prometheus unpacked/usr/bin/promtool out/prometheus/
}

build_golangci-lint() {
	source_of "$LINT_MODULE" "$LINT_VERSION" "$LINT_SUM" "$1"
	cd "$1"
	CGO_ENABLED=0 go_build -ldflags "-s -w -X main.version=$LINT_VERSION" -o "$1/out/golangci-lint" ./cmd/golangci-lint
}

# ensure NAME WANT builds NAME with build_NAME unless bin/ has it as WANT says.
# The stamp is written last: a build that was interrupted is done again.
ensure() {
	local name=$1 want=$2 stamp=$bin/.stamps/$1 dir
	if [ -e "$bin/$name" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return 0; fi
	dir=$work/$name
	mkdir -p "$dir/out" "$bin/.stamps"
	timed "making bin/$name ($want)" in_subshell "build_$name" "$dir"
	rm -rf "${bin:?}/$name" "$stamp"
	mv "$dir/out/$name" "$bin/$name"
	echo "$want" >"$stamp"
}

in_subshell() { ("$@"); }

# for_arm64 lets every build that follows be one for arm64, in a folder of its own.
for_arm64() {
	local debian=$bin/arm64/debian
	bin=$bin/arm64
	export GOARCH=arm64 CC=aarch64-linux-gnu-gcc PKG_CONFIG_SYSROOT_DIR=$debian
	export PKG_CONFIG_LIBDIR=$debian/usr/lib/aarch64-linux-gnu/pkgconfig
}

# modules fetches what our own modules need.
modules() {
	local dir
	for dir in . keyless crictl-tests; do (cd "$top/$dir" && patiently quietly go mod download); done
}

command -v go >/dev/null || die "Go is not installed or not in PATH; cribox needs Go 1.26 or newer"
[ "${1:-}" != arm64 ] || for_arm64
mkdir -p "$bin"
# Two people, or make -j, may ask at once: the second finds everything done.
exec 9>"$bin/.lock"
flock 9

work=$(mktemp -d "$bin/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
if [ "${1:-}" = lint ]; then
	ensure golangci-lint "$LINT_VERSION"
	exit
fi
[ "${1:-}" != kube ] || packages+=("${kube_packages[@]}")
if [ "${1:-}" != arm64 ]; then
	ensure_packages "${packages[@]}"
	timed "fetching Go modules" modules
fi
ensure runc "$RUNC_VERSION static seccomp"
ensure cni "$CNI_VERSION $CNI_PLUGINS"
ensure crictl "$CRICTL_VERSION"
ensure critest "$CRICTL_VERSION"
[ "${1:-}" != arm64 ] || exit 0
ensure ginkgo "of critest $CRICTL_VERSION"
! command -v apt-get >/dev/null || ensure prometheus "of Debian"
if [ "${1:-}" = kube ]; then
	ensure kube "$KUBE_VERSION"
	ensure flannel "$FLANNEL_VERSION"
fi
[ "${1:-}" != containerd ] || ensure containerd "$CONTAINERD_VERSION"
