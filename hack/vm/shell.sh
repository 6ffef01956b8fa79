#!/usr/bin/env bash
# A prompt in a machine with cribox installed. The machine ends with the prompt, unless it ran before.
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if ! vm_pid >/dev/null; then
	trap '"$top/hack/vm/down.sh"' EXIT
	"$top/hack/vm/up.sh"
	"$top/hack/vm/install.sh"
fi
note "leave with exit; what was changed in the machine is gone when it ends"
vm || true # the status of the last command is no error of ours
