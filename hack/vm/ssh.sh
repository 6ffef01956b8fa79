#!/usr/bin/env bash
# ssh.sh [COMMAND...] runs a shell command as root in the machine of up.sh; without one, a prompt.
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

vm_pid >/dev/null || die "no machine runs: hack/vm/up.sh"
vm "$@"
