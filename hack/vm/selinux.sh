#!/usr/bin/env bash
# Completes the SELinux policy of an image of image.sh. Debian's names container_t for containers, but
# leaves out the module of the reference policy that has this type (bug 984879). Containers are
# confined in the machine, and all others only watched: everything they are denied is logged and allowed.
#
#   selinux.sh TREE          builds and installs the modules
#   selinux.sh --label TREE  gives all files their labels
#
# Both run in a mount namespace of their own.
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# modules TREE installs container, and the module of dist/selinux.
modules() {
	local tree=$1 dir=$1/root/policy
	cp /etc/resolv.conf "$tree/etc/resolv.conf"
	mkdir -p "$dir"
	chroot "$tree" sh -euc 'cd /root/policy
		apt-get -q -o Acquire::Retries=3 update
		apt-get -q -o Acquire::Retries=3 -o APT::Sandbox::User=root download selinux-policy-dev selinux-policy-src
		for p in *.deb; do dpkg-deb -x $p .; done
		tar --zstd -xf usr/src/selinux-policy-src.tar.zst
		cp selinux-policy-src/policy/modules/services/container.te selinux-policy-src/policy/modules/services/container.fc .'
	cp "$top"/dist/selinux/cribox.{te,fc} "$dir/"
	chroot "$tree" sh -euc 'cd /root/policy
		make -f usr/share/selinux/devel/include/Makefile HEADERDIR=$PWD/usr/share/selinux/devel/include NAME=default TYPE=mcs container.pp cribox.pp
		semodule -n -s default -i container.pp -i cribox.pp
		checkpolicy -b -M -C -o all.cil "$(echo /etc/selinux/default/policy/policy.*)"'
	permissive <"$dir/all.cil" >"$dir/watched.cil"
	[ "$(wc -l <"$dir/watched.cil")" -gt 100 ] || die "the policy has no domains"
	chroot "$tree" sh -euc 'semodule -n -s default -i /root/policy/watched.cil
		sed -i "s/^SELINUX=.*/SELINUX=enforcing/" /etc/selinux/config'
	rm -rf "$dir"
}

# permissive reads a policy in CIL and prints a module that makes all its domains permissive, but
# those of containers.
permissive() {
	awk '
		$1 == "(typeattributeset" && ($2 == "domain" || $2 == "container_domain") {
			gsub(/[()]/, " ")
			for (i = 3; i <= NF; i++) {
				if ($2 == "domain") domain[$i] = 1
				else container[$i] = 1
			}
		}
		END { for (d in domain) if (!(d in container)) print "(typepermissive " d ")" }
	'
}

mount -t proc proc "${*: -1}/proc"
case $1 in
--label) chroot "$2" setfiles -F /etc/selinux/default/contexts/files/file_contexts / ;;
*) modules "$1" ;;
esac
