# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it: where the files of the machine of arm64 are.

# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/process.sh
. "$top/hack/process.sh"

arm=$bin/arm64              # programs of arm64, and below it what Debian has for it
debian=$arm/debian          # what debian.sh unpacks
run=${ARM64_RUN:-$bin/arm64-run} # of the machine that runs: disk, console
qemu=/usr/bin/qemu-system-aarch64
