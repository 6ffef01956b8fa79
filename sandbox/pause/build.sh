#!/bin/sh
# Builds pause into this folder; hack/freestanding.sh has the options and how.
set -eu
cd "$(dirname "$0")"
exec ../../hack/freestanding.sh pause '' "$@"
