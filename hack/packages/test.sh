#!/usr/bin/env bash
# Builds the packages twice and compares the bytes, and what is in the RPM package with what is in
# the Debian one. Then installs, upgrades, removes and purges the latter in a root folder of its own,
# without systemd. As root.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../lib.sh"
need_root "the test of packages"

for script in "$here"/scripts/*; do sh -n "$script"; done
mkdir -p "$bin"
work=$(mktemp -d "$bin/.packages-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
build() { OUT=$work/$1 VERSION=$2 ARCHITECTURES=amd64 FORMATS=${3:-deb} quietly "$here/build.sh"; }
build first v0.1.0 "deb rpm"
build again v0.1.0 "deb rpm"
build second v0.2.0
for format in deb rpm; do
	cmp "$work"/first/*.$format "$work"/again/*.$format || die "two builds of one commit differ"
done

# Both packages have the same files, but for those that belong to one format, and zsh's completions,
# which lie in another folder.
files_of_deb() {
	local mode sum name
	mkdir "$work/deb" && dpkg-deb -x "$1" "$work/deb" && cd "$work/deb" &&
		find . -type f -printf '%m %P\n' | while read -r mode name; do
			read -r sum _ < <(sha256sum "$name")
			echo "$mode $sum /$name"
		done
}
common() { sed 's#/zsh/[a-z-]*/#/zsh/#' | grep -v -e /changelog.Debian.gz -e /lintian/ | sort -k 3; }
deb=$(files_of_deb "$work"/first/*.deb | common)
rpm=$(cd "$here" && go run ./rpmfiles "$work"/first/*.rpm | common)
[ "$(wc -l <<<"$deb")" -gt 10 ] || die "the Debian package has no files"
[ "$deb" = "$rpm" ] || die "the packages have other files: $(diff <(echo "$deb") <(echo "$rpm"))"

# The root has what the scripts of the package execute, and nothing else.
root=$work/root
mkdir -p "$root"/{usr/bin,dev,run,etc,proc,var/lib/dpkg/{info,updates,triggers}}
touch "$root"/var/lib/dpkg/{status,available} "$root/dev/null" "$root/etc/kept"
for program in sh ls grep rm cat; do
	cp -L --parents "$(command -v $program)" "$root"
	ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r library; do cp -L --parents "$library" "$root"; done
done
[ -e "$root/bin" ] || ln -s usr/bin "$root/bin"
for helper in deb-systemd-helper deb-systemd-invoke; do
	printf '#!/bin/sh\n' >"$root/usr/bin/$helper"
	chmod 755 "$root/usr/bin/$helper"
done
list() { (cd "$root" && find . -path ./var/lib/dpkg -prune -o -print | sort); }
package() { quietly dpkg --root="$root" --log="$work/log" "$@"; }
before=$(list)

package -i "$work"/first/*.deb
chroot "$root" /usr/bin/cribox version | grep -q 'v0\.1\.0' || die "the installed program is not of version 0.1.0"
[ "$(chroot "$root" /usr/bin/cribox-helper version)" = 'cribox-helper v0.1.0' ] || die "cribox and cribox-helper are of different versions"
{ chroot "$root" /usr/bin/cribox-keyless </dev/null 2>&1 || true; } | grep -q '^cribox-keyless: read the request' ||
	die "cribox-keyless does not run" # without a request, it says so
echo '# a change' >>"$root/etc/cribox/config.toml"
package -i "$work"/second/*.deb
grep -q '# a change' "$root/etc/cribox/config.toml" || die "an upgrade has replaced a changed configuration"
package -r cribox
[ -e "$root/etc/cribox/config.toml" ] && [ ! -e "$root/usr/bin/cribox" ] && [ ! -e "$root/usr/bin/cribox-helper" ] || die "a removal left the program, or took the configuration"
mkdir -p "$root/run/cribox/shim/task" "$root/var/lib/cribox/images"
if package -P cribox 2>"$work/said"; then die "a purge deletes the files of running pods"; fi
grep -q 'pods still run' "$work/said" || die "a purge that is refused does not say why: $(cat "$work/said")"
[ -e "$root/var/lib/cribox/images" ] || die "a purge that is refused has deleted files"
rm -r "$root/run/cribox/shim/task"
package -P cribox
[ "$(list)" = "$before" ] || die "a purge left files: $(diff <(echo "$before") <(list))"
note "the package installs, upgrades, and leaves nothing"
