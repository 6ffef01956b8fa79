# shellcheck shell=bash
# Sourced by the scripts that need Debian packages: installs those that this machine lacks.

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

apt_install() {
	DEBIAN_FRONTEND=noninteractive quietly apt-get -y -q --no-install-recommends \
		-o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 install "$@"
}

apt_update_and_install() {
	note "package lists are missing or old: apt-get update"
	quietly apt-get -q -o Acquire::Retries=3 update || note "apt-get update was not complete; trying with what it has"
	apt_install "$@"
}

install_missing() { apt_install "$@" 2>/dev/null || apt_update_and_install "$@"; }

# ensure_packages PACKAGE... installs those that are missing.
ensure_packages() {
	local missing=() p
	if ! command -v dpkg-query >/dev/null; then
		note "not a Debian system: please provide what these packages hold: $*"
		return
	fi
	for p in "$@"; do installed "$p" || missing+=("$p"); done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" -eq 0 ] || die "packages are missing; as root: apt-get install ${missing[*]}"
	timed "installing Debian packages: ${missing[*]}" install_missing "${missing[@]}"
}

# mirror SUITE prints where this machine gets the suite from. One that has another suite asks Debian itself.
mirror() {
	local site
	# shellcheck disable=SC2016 # apt-get expands it
	site=$(apt-get indextargets --format '$(CODENAME) $(SITE)' | awk -v suite="$1" '$1 == suite { print $2; exit }')
	echo "${site:-http://deb.debian.org/debian}"
}
