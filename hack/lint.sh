#!/usr/bin/env bash
# Formatting, go vet and the linters of .golangci.yml, for all Go modules.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$top/hack/tools.sh" lint
export GOWORK=off
for module in . keyless crictl-tests kube-tests vm-tests; do
	cd "$top/$module"
	timed "go vet in $module" go vet ./...
	timed "golangci-lint in $module" "$bin/golangci-lint" run --config "$top/.golangci.yml" ./...
done
cd "$top"
if command -v shellcheck >/dev/null; then
	timed "shellcheck" shellcheck -S warning -x -P SCRIPTDIR hack/*.sh hack/arm64/*.sh hack/kube/*.sh hack/vm/*.sh .ci/run
fi
