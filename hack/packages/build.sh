#!/usr/bin/env bash
# Builds the Debian and RPM packages of VERSION for the architectures in ARCHITECTURES, into
# bin/packages. The same commit and the same Go give the same bytes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hack/lib.sh
. "$here/../lib.sh"

out=${OUT:-$bin/packages}
VERSION=${VERSION:-0.1.0-dev}
ARCHITECTURES=${ARCHITECTURES:-amd64 arm64}
FORMATS=${FORMATS:-deb rpm}
export GOWORK=off TZ=UTC LC_ALL=C
umask 022

# The time of the commit is the time of every file. Outside a clone there is only 1980.
epoch=$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 315532800)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$epoch}

# package_version prints VERSION so that dpkg and rpm sort it: a pre-release before its release,
# and commits after a tag behind it. A build without a tag gets the time of its commit.
package_version() {
	local v=${VERSION#v}
	v=$(sed -E "s/-dev\+/-dev$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)./
		s/-dirty$/+dirty/
		s/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/" <<<"$v")
	v=${v/-/\~}
	echo "${v//-/.}"
}

# licenses prints the licenses of all Go modules that the programs contain.
licenses() {
	local module dir file
	for dir in . keyless; do
		(cd "$top/$dir" && go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' .)
	done | sort -u |
		while read -r module dir; do
			for file in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE*; do
				[ ! -f "$file" ] || { printf '\n==== %s: %s ====\n\n' "$module" "${file##*/}" && cat "$file"; }
			done
		done
}

changelog_debian() {
	cat <<EOF
cribox ($PACKAGE_VERSION-1) unstable; urgency=medium

  * Release $VERSION; see changelog.gz for what changed.

 -- The cribox authors <maintainers@cribox.invalid>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
EOF
}

# stage_common puts into STAGE what is the same for all architectures.
stage_common() {
	(cd "$top" && go run ./internal/manual "$VERSION" "$STAGE/manual")
	gzip -9n "$STAGE"/manual/man/*
	sed 's#/usr/local/bin/cribox#/usr/bin/cribox#' "$top/dist/cribox.service" >"$STAGE/cribox.service"
	licenses | gzip -9n >"$STAGE/licenses.gz"
	gzip -9nc "$top/CHANGELOG.md" >"$STAGE/changelog.gz"
	changelog_debian | gzip -9n >"$STAGE/changelog.Debian.gz"
}

one() {
	local ARCH=$1 format
	export ARCH
	(cd "$top" && CGO_ENABLED=0 GOOS=linux GOARCH=$ARCH go build -trimpath -buildvcs=false \
		-ldflags "-s -w -X main.version=$VERSION" -o "$STAGE/" . ./cribox-helper)
	(cd "$top/keyless" && CGO_ENABLED=0 GOOS=linux GOARCH=$ARCH go build -trimpath -buildvcs=false \
		-ldflags "-s -w" -o "$STAGE/cribox-keyless" .)
	for format in $FORMATS; do
		(cd "$here" && quietly "$bin/nfpm" package --config nfpm.yaml --packager "$format" --target "$out")
	done
}

mkdir -p "$bin"
(cd "$here" && quietly env CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$bin/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm)
STAGE=$(mktemp -d "$bin/.packages.XXXXXX")
trap 'rm -rf "$STAGE"' EXIT
PACKAGE_VERSION=$(package_version)
export STAGE PACKAGE_VERSION
rm -rf "$out"
mkdir -p "$out"
stage_common
for arch in $ARCHITECTURES; do timed "packages of cribox $PACKAGE_VERSION for $arch" one "$arch"; done
(cd "$out" && ls -1)
