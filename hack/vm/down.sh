#!/usr/bin/env bash
# Ends the machine of up.sh as a power cut does: its disk is thrown away anyway. The console's log stays.
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if pid=$(vm_pid); then end "$pid" "qemu"; fi
rm -f "$run/disk.qcow2" "$run/pid" "$run/port"
