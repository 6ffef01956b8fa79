#!/bin/sh
# Builds place into this folder; hack/freestanding.sh has the options and how.
# The flag keeps the compiler from calling memcpy and memset, which are not there.
set -eu
cd "$(dirname "$0")"
exec ../../hack/freestanding.sh place '-fno-tree-loop-distribute-patterns' "$@"
