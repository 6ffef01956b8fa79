#!/usr/bin/env bash
# fuzz.sh [TIME]: runs every fuzz target for TIME (6s), one after the other. An input that fails is
# left in the package's testdata/fuzz, where `go test` finds it from then on. Inputs are made smaller in
# ten tries: go's own limit is a minute, and when TIME ends within that it reports a failure.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

time=${1:-6s}
cd "$top"
export GOWORK=off
found=0
while IFS=: read -r file line; do
	[[ $line =~ ^func\ (Fuzz[A-Za-z0-9_]+)\( ]] || continue
	found=$((found + 1))
	name=${BASH_REMATCH[1]}
	timed "$name of ./$(dirname "$file")" \
		quietly go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10x "./$(dirname "$file")"
done < <(git ls-files '*_test.go' | grep -v -e '^crictl-tests/' -e '^kube-tests/' -e '^vm-tests/' | xargs grep -H '^func Fuzz')
[ "$found" -gt 0 ] || die "no fuzz target found"
