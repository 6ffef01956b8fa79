#!/usr/bin/env bash
# Makes bin/arm64/debian: a kernel of arm64 with its modules, busybox, and the library that runc is built
# with, all from Debian 12. The packages are unpacked, not installed. apt verifies them in a folder of its
# own, so this machine stays one of its own architecture.
set -euo pipefail
# shellcheck source=hack/arm64/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=hack/apt.sh
. "$top/hack/apt.sh"

suite=bookworm
kernel_package=linux-image-cloud-arm64 # depends on the package of the newest kernel
packages=(busybox-static libseccomp-dev)

host_packages=(
	qemu-system-arm                                # the machine
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross    # runc
	pkg-config
	e2fsprogs cpio kmod                            # its disk and its first file system
	debian-archive-keyring                         # whose packages these are
)

# lists DIR fetches the signed lists of arm64 into DIR, and sets options: with them apt knows these alone.
lists() {
	mkdir -p "$1"/{lists,archives}/partial
	: >"$1/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror "$suite") $suite main" >"$1/sources.list"
	options=(-q -o Acquire::Retries=3 -o Acquire::Languages=none -o APT::Sandbox::User=root
		-o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State=$1" -o "Dir::State::lists=$1/lists"
		-o "Dir::State::status=$1/status" -o "Dir::Cache=$1" -o "Dir::Etc::sourcelist=$1/sources.list"
		-o Dir::Etc::sourceparts=/dev/null)
	quietly apt-get "${options[@]}" update
}

# kernel prints the package that has the kernel itself.
kernel() { apt-cache "${options[@]}" depends "$kernel_package" | awk '/Depends: linux-image/ { print $2; exit }'; }

fetch() {
	local apt=$work/apt deb
	lists "$apt"
	packages+=("$(kernel)")
	(cd "$work" && quietly apt-get "${options[@]}" download "${packages[@]}")
	mkdir "$work/tree"
	for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/tree"; done
	[ -e "$(echo "$work"/tree/boot/vmlinuz-*)" ] || die "the package ${packages[-1]} has no kernel"
	depmod -b "$work/tree" "$(ls "$work/tree/lib/modules")"
}

build() {
	timed "fetching a kernel and busybox of arm64" fetch
	rm -rf "$debian" "$stamp"
	mkdir -p "$arm/.stamps"
	mv "$work/tree" "$debian"
	echo "$want" >"$stamp"
}

need_root "making a machine of arm64"
ensure_packages "${host_packages[@]}"
stamp=$arm/.stamps/debian
want=$(sha256sum <"$top/hack/arm64/debian.sh")
if [ -e "$debian" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi
mkdir -p "$arm"
work=$(mktemp -d "$arm/.debian.XXXXXX")
trap 'rm -rf "$work"' EXIT
build
