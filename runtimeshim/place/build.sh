#!/bin/sh
# Builds place for every architecture into this folder.
#
#   build.sh                 rebuild the committed files
#   build.sh --check         rebuild elsewhere and compare; an architecture
#                            whose compiler is missing, or is not the version
#                            the committed bytes come from, is skipped
#   build.sh --check --all   the same, and a skipped architecture is an error
#
# The bytes depend on nothing but place.c, the flags below and the compiler.
set -eu
cd "$(dirname "$0")"

compiler_version=12.2.0 # Debian 12: gcc, gcc-aarch64-linux-gnu

check=no all=no
for arg; do
	case $arg in
	--check) check=yes ;;
	--all) all=yes ;;
	*) echo "usage: build.sh [--check [--all]]" >&2; exit 2 ;;
	esac
done

out=.
if [ $check = yes ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi

compiler() { # architecture: the compiler's command, or nothing
	for cc in "$1-linux-gnu-gcc" gcc; do
		if command -v "$cc" >/dev/null && [ "$("$cc" -dumpmachine)" = "$1-linux-gnu" ]; then
			echo "$cc"
			return
		fi
	done
}

# One read-only, executable segment that holds the headers too; aligned for
# kernels with 64 KiB pages. No unwind tables, no compiler's name, no build id.
build() { # compiler, output
	"$1" -std=c11 -Wall -Wextra -Werror -Os -ffreestanding -fno-builtin -fno-ident \
		-fno-asynchronous-unwind-tables -fno-stack-protector -fno-tree-loop-distribute-patterns \
		-fno-pic -fno-pie -mgeneral-regs-only $3 \
		-nostdlib -static -no-pie -s \
		-Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,max-page-size=65536 \
		-Wl,-z,norelro -Wl,-z,noexecstack \
		-o "$2" place.c
	chmod 0644 "$2"
}

status=0
for pair in amd64:x86_64:-fcf-protection=none arm64:aarch64:-mbranch-protection=none; do
	goarch=${pair%%:*}
	rest=${pair#*:}
	machine=${rest%%:*}
	flags=${rest#*:}
	cc=$(compiler "$machine")
	if [ -z "$cc" ]; then
		echo "place_$goarch: skipped: no compiler for $machine (Debian: gcc-$(echo $machine | tr _ -)-linux-gnu)"
		[ $all = no ] || status=1
		[ $check = yes ] || status=1
		continue
	fi
	version=$("$cc" -dumpfullversion)
	if [ $check = yes ] && [ "$version" != $compiler_version ]; then
		echo "place_$goarch: skipped: the committed bytes come from gcc $compiler_version, $cc is $version"
		[ $all = no ] || status=1
		continue
	fi
	build "$cc" "$out/place_$goarch" "$flags"
	if [ $check = no ]; then
		echo "place_$goarch: $(wc -c <"place_$goarch") bytes, $cc $version"
	elif cmp -s "$out/place_$goarch" "place_$goarch"; then
		echo "place_$goarch: the committed bytes are what place.c builds to"
	else
		echo "place_$goarch: the committed bytes differ from what place.c builds to" >&2
		status=1
	fi
done
exit $status
