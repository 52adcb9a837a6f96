#!/usr/bin/env bash
# Licences, bans and sources of what we depend on, by cargo-deny, which is built once beside our own build.
set -euo pipefail
tools=${CARGO_TARGET_DIR:?make sets it}/suites
export PATH=$tools/bin:$PATH
command -v cargo-deny >/dev/null ||
    CARGO_TARGET_DIR=$CARGO_TARGET_DIR/suites-build cargo install --quiet --locked --root "$tools" cargo-deny@0.20.2
cargo deny --all-features check bans licenses sources
