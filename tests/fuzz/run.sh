#!/usr/bin/env bash
# Fuzzes the decoders: run.sh [SECONDS-EACH [TARGET…]]. KOS_SEED repeats a run; what was found before and what reached
# new code is kept beside the build, so that each run goes on where the last one ended.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${CARGO_TARGET_DIR:?make sets it}/fuzz
seconds=${1:-3}
shift || true
export KOS_SEED=${KOS_SEED:-$((RANDOM * 32768 + RANDOM + 1))}
export build seconds

# What `cargo fuzz` passes for coverage without a sanitizer: it works on stable. --target keeps it from build scripts.
# Not --locked: the lock follows what the crates of the workspace come to need.
host=$(rustc -vV | sed -n 's/^host: //p')
CARGO_TARGET_DIR=$build RUSTFLAGS="-Dwarnings -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table" \
    cargo build --quiet --release --target "$host" --manifest-path "$here/Cargo.toml"
export program=$build/$host/release/kos-fuzz

mapfile -t targets < <(sed -n 's/^    ("\([a-z0-9_]*\)", .*::run),$/\1/p' "$here/src/main.rs")
[ $# = 0 ] || targets=("$@")

fuzz() { # TARGET
    local corpus=$build/corpus/$1 log=$build/$1.log
    mkdir -p "$corpus" "$build/found"
    if KOS_FUZZ=$1 timeout --kill-after=10 $((seconds * 2 + 120)) "$program" "$corpus" -seed="$KOS_SEED" \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=4096 \
        -artifact_prefix="$build/found/$1-" >"$log" 2>&1; then
        echo "fuzz: $1: ok, $(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log") inputs"
    else
        {
            echo "fuzz: $1: FAILED with KOS_SEED=$KOS_SEED; the end of its log:"
            tail -n 40 "$log"
            echo "fuzz: repeat: KOS_FUZZ=$1 $program $build/found/$1-…"
        } >&2
        return 1
    fi
}
export -f fuzz
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'fuzz {}'
