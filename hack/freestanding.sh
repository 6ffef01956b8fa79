#!/bin/sh
# Builds the freestanding program NAME of the current folder, for every architecture. The build.sh
# of the folder calls it.
#
#   freestanding.sh NAME "FLAGS"                 rebuild the committed files
#   freestanding.sh NAME "FLAGS" --check         rebuild elsewhere and compare; an architecture
#                                                whose compiler is missing, or is not the version
#                                                the committed bytes come from, is skipped
#   freestanding.sh NAME "FLAGS" --check --all   the same, and a skipped architecture is an error
#
# The bytes depend on nothing but NAME.c, FLAGS, the flags below and the compiler.
set -eu

name=$1 extra=$2
shift 2

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
build() { # compiler, output, flags
	# shellcheck disable=SC2086 # flags are several words
	"$1" -std=c11 -Wall -Wextra -Werror -Os -ffreestanding -fno-builtin -fno-ident \
		-fno-asynchronous-unwind-tables -fno-stack-protector $extra \
		-fno-pic -fno-pie -mgeneral-regs-only $3 \
		-nostdlib -static -no-pie -s \
		-Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,max-page-size=65536 \
		-Wl,-z,norelro -Wl,-z,noexecstack \
		-o "$2" "$name.c"
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
		echo "${name}_$goarch: skipped: no compiler for $machine (Debian: gcc-$(echo "$machine" | tr _ -)-linux-gnu)"
		[ $all = no ] || status=1
		[ $check = yes ] || status=1
		continue
	fi
	version=$("$cc" -dumpfullversion)
	if [ $check = yes ] && [ "$version" != $compiler_version ]; then
		echo "${name}_$goarch: skipped: the committed bytes come from gcc $compiler_version, $cc is $version"
		[ $all = no ] || status=1
		continue
	fi
	build "$cc" "$out/${name}_$goarch" "$flags"
	if [ $check = no ]; then
		echo "${name}_$goarch: $(wc -c <"${name}_$goarch") bytes, $cc $version"
	elif cmp -s "$out/${name}_$goarch" "${name}_$goarch"; then
		echo "${name}_$goarch: the committed bytes are what $name.c builds to"
	else
		echo "${name}_$goarch: the committed bytes differ from what $name.c builds to" >&2
		status=1
	fi
done
exit $status
