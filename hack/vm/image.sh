#!/usr/bin/env bash
# Makes bin/vm: a Debian 12 that boots in a virtual machine, with systemd, cgroup v2 and AppArmor.
# It is made once, and again when this file changes. Everything a test adds goes into an overlay
# that is thrown away, so the image itself is never written to. With KERNEL=backports it makes
# bin/vm-backports, which has the kernel of Debian's backports (6.12 or newer) in place of 6.1. With
# LSM=selinux it makes bin/vm-selinux, which has SELinux in place of AppArmor (selinux.sh).
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=hack/apt.sh
. "$top/hack/apt.sh"

suite=bookworm
kernel_package=linux-image-cloud-amd64
size=8G # sparse: about 900 MB of it is used

host_packages=(
	qemu-system-x86 qemu-utils # the machine, and its throw-away disk
	debootstrap e2fsprogs      # the image
	debian-archive-keyring     # whose packages these are
	openssh-client             # the way in
)
guest_packages=(
	initramfs-tools systemd-sysv libpam-systemd dbus openssh-server
	crun libseccomp2                    # what a node has for containers
	iproute2 iptables nftables kmod     # what network plugins execute
	conntrack                           # what kube-proxy executes
	procps util-linux busybox-static ca-certificates
)

case $lsm in
selinux) guest_packages+=(selinux-policy-default selinux-utils policycoreutils auditd
	checkpolicy semodule-utils gawk m4 make zstd) ;; # to build a module of the policy
*) guest_packages+=(apparmor) ;;
esac

# bootstrap TREE installs Debian into it. In a mount namespace of its own, so that no mount stays.
bootstrap() {
	local from include=("${guest_packages[@]}")
	from=$(mirror "$suite")
	[ "$kernel" = backports ] || include+=("$kernel_package")
	quietly unshare --mount --propagation private debootstrap --variant=minbase \
		--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		--include="$(IFS=, && echo "${include[*]}")" "$suite" "$1" "$from" ||
		die "debootstrap could not install Debian $suite from $from"
	[ "$kernel" != backports ] || quietly unshare --mount --propagation private "$0" --backports "$1" "$from" ||
		die "the kernel of $suite-backports could not be installed from $from"
	[ "$lsm" != selinux ] || quietly unshare --mount --propagation private "$top/hack/vm/selinux.sh" "$1" ||
		die "the module of SELinux's policy that knows containers could not be made"
}

# install_backports TREE MIRROR runs in a mount namespace of its own.
install_backports() {
	echo "deb $2 $suite-backports main" >"$1/etc/apt/sources.list.d/backports.list"
	cp /etc/resolv.conf "$1/etc/resolv.conf"
	mount -t proc proc "$1/proc"
	chroot "$1" apt-get -q -o Acquire::Retries=3 update
	DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get -y -q --no-install-recommends -o Acquire::Retries=3 \
		install -t "$suite-backports" "$kernel_package"
}

# configure TREE turns the installation into a machine that one can log into.
configure() {
	local tree=$1 unit
	echo node >"$tree/etc/hostname"
	printf '127.0.0.1 localhost node\n::1 localhost\n' >"$tree/etc/hosts"
	: >"$tree/etc/resolv.conf"
	: >"$tree/etc/machine-id"
	printf '/dev/vda / ext4 defaults 0 1\n' >"$tree/etc/fstab"
	printf '[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' \
		>"$tree/etc/systemd/network/10-eth0.network"
	mkdir -p "$tree/var/log/journal" "$tree/root/.ssh" # the journal shall outlive a reboot
	chmod 700 "$tree/root/.ssh"
	# critest calls apparmor_parser through sudo, and is root already.
	printf '#!/bin/sh\nexec "$@"\n' >"$tree/usr/local/bin/sudo"
	chmod 755 "$tree/usr/local/bin/sudo"
	for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
		ln -sf /dev/null "$tree/etc/systemd/system/$unit"
	done
	ln -sf /lib/systemd/system/systemd-networkd.service "$tree/etc/systemd/system/multi-user.target.wants/"
	rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
}

# keys TREE DIR makes a key for this image alone, and notes the machine's own.
keys() {
	ssh-keygen -q -t ed25519 -N '' -C cribox-vm -f "$2/key"
	install -m 600 "$2/key.pub" "$1/root/.ssh/authorized_keys"
	printf 'cribox-vm %s\n' "$(cut -d' ' -f1,2 "$1/etc/ssh/ssh_host_ed25519_key.pub")" >"$2/known_hosts"
}

build() {
	local tree=$work/tree out=$work/vm
	mkdir -p "$tree" "$out"
	timed "installing Debian $suite into a folder" bootstrap "$tree"
	configure "$tree"
	keys "$tree" "$out"
	[ "$lsm" != selinux ] || quietly unshare --mount --propagation private "$top/hack/vm/selinux.sh" --label "$tree"
	cp "$(echo "$tree"/boot/vmlinuz-*)" "$out/vmlinuz"
	cp "$(echo "$tree"/boot/initrd.img-*)" "$out/initrd"
	timed "making a file system of it" quietly mke2fs -q -t ext4 -d "$tree" "$out/disk.img" "$size"
	rm -rf "$image" "$stamp"
	mv "$out" "$image"
	mkdir -p "$(dirname "$stamp")"
	echo "$want" >"$stamp"
}

if [ "${1:-}" = --backports ]; then
	install_backports "$2" "$3"
	exit
fi
need_root "make vm"
[[ $kernel =~ ^(|backports)$ ]] || die "KERNEL=$kernel: want backports, or nothing for Debian's own"
[[ $lsm =~ ^(|selinux)$ ]] || die "LSM=$lsm: want selinux, or nothing for AppArmor"
ensure_packages "${host_packages[@]}"
stamp=$bin/.stamps/${image##*/}
recipe=("$top/hack/vm/image.sh")
[ "$lsm" != selinux ] || recipe+=("$top/hack/vm/selinux.sh" "$top"/dist/selinux/cribox.*)
want=$(cat "${recipe[@]}" | sha256sum)
if [ -e "$image/disk.img" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi
mkdir -p "$bin"
work=$(mktemp -d "$bin/.vm.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
build
