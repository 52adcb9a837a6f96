#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing: deps.sh PACKAGE…
set -euo pipefail

if ! command -v dpkg-query >/dev/null; then
    echo "deps: no dpkg here; these are needed, under your system's names: $*" >&2
    exit 0
fi

missing=()
for package in "$@"; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

root=()
[ "$(id -u)" = 0 ] || root=(sudo)
echo "deps: installing ${missing[*]}"
# The lists may be missing or old; where they cannot be renewed, those at hand may do.
"${root[@]}" apt-get update -qq || true
if ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null; then
    echo "deps: apt-get failed; type: sudo apt-get update && sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
