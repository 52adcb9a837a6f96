#!/usr/bin/env bash
# Runs one step of `make test` and prints its minutes: step.sh NAME COMMAND…
# `begin` and `end` enclose the steps: the sum is printed at the end.
set -euo pipefail

clock=${CARGO_TARGET_DIR:-/tmp}/.test-began

minutes() { # seconds
    printf '%d.%d min' $(($1 / 60)) $(($1 % 60 / 6))
}

case ${1:?usage: step.sh NAME COMMAND…} in
begin)
    mkdir -p "$(dirname "$clock")"
    date +%s >"$clock"
    exit 0
    ;;
end)
    echo "== all steps: $(minutes $(($(date +%s) - $(cat "$clock"))))"
    exit 0
    ;;
esac

name=$1
shift
echo "== $name: $*"
began=$SECONDS
status=0
"$@" || status=$?
if [ "$status" = 0 ]; then
    echo "== $name: $(minutes $((SECONDS - began)))"
else
    echo "== $name: FAILED (exit $status) after $(minutes $((SECONDS - began)))" >&2
fi
exit "$status"
