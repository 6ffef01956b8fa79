#!/usr/bin/env bash
# timed.sh TEXT COMMAND... runs the command between two lines: what it does, and
# how long it took.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
timed "$@"
