#!/usr/bin/env bash
# The main job on real data: copies a real tree and a large file into the mount, compares, maps, runs a job.
# Writes only under MOUNT/mem/demo and into MOUNT/jobs. Running it again starts afresh.
set -euo pipefail
# Times and counts with a decimal point everywhere.
export LC_ALL=C

mount=${KOS_MOUNT:-/kos}
kos=${KOS:-kos}
demo=$mount/mem/demo
repo=$(cd "$(dirname "$0")/.." && pwd)
tree_mib_max=200
large_mib=256
job_seconds_max=60
work=

say() { printf '%s\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}
seconds() { awk -v began="$1" -v ended="$EPOCHREALTIME" 'BEGIN { printf "%.2f s", ended - began }'; }
cleanup() { [ -z "$work" ] || rm -rf -- "$work"; }
trap cleanup EXIT

check_mount() {
    local type
    type=$(timeout 10 stat -f -c %T -- "$mount" 2>/dev/null) || fail "$mount does not answer; start it: kos up"
    [ "$type" = fuseblk ] || [ "$type" = fuse ] || fail "$mount is no kosfs mount ($type); start it: kos up"
    [ -d "$mount/mem" ] || fail "$mount/mem is missing; see: $kos status"
    mkdir -p -- "$demo"
    rm -rf -- "$demo/tree" "$demo/large" "$demo/compare" "$demo/compare.c"
}

# Prints the directories to copy: this repository's sources, then what else is there, up to the bound.
tree_sources() {
    local dir size sum=0
    for dir in "$repo"/{fabricd,fuse,store,tools,tests,docs} /usr/share/doc /usr/include /usr/share/perl; do
        [ -d "$dir" ] || continue
        size=$(du -sm -- "$dir" 2>/dev/null | cut -f1) || continue
        [ $((sum + size)) -le "$tree_mib_max" ] || continue
        sum=$((sum + size))
        printf '%s\n' "$dir"
    done
}

copy_tree() {
    local dir began files mib
    say "1. a real tree -> $demo/tree"
    began=$EPOCHREALTIME
    while read -r dir; do
        mkdir -p -- "$demo/tree$(dirname "$dir")"
        cp -a -- "$dir" "$demo/tree$dir"
    done < <(tree_sources)
    "$kos" sync >/dev/null || fail "kos sync failed; see: $kos status"
    files=$(find "$demo/tree" | wc -l)
    mib=$(du -sm --apparent-size -- "$demo/tree" | cut -f1)
    say "   $files names, $mib MiB copied and synced in $(seconds "$began")"
    began=$EPOCHREALTIME
    while read -r dir; do
        diff -r --no-dereference -- "$dir" "$demo/tree$dir" || fail "the copy of $dir differs"
    done < <(tree_sources)
    say "   diff -r: no difference ($(seconds "$began"))"
}

copy_large() {
    local began bytes
    say "2. a large file of real bytes -> $demo/large"
    # head closes the pipe early, which tar calls a failure.
    { tar -cf - -C / usr/lib usr/bin usr/share 2>/dev/null || true; } | head -c "${large_mib}M" >"$work/large" || true
    bytes=$(stat -c %s -- "$work/large")
    began=$EPOCHREALTIME
    cp -- "$work/large" "$demo/large"
    sync -- "$demo/large"
    say "   $((bytes >> 20)) MiB copied and fsynced in $(seconds "$began")"
    began=$EPOCHREALTIME
    cmp -- "$work/large" "$demo/large" || fail "the large file differs"
    say "   cmp: no difference ($(seconds "$began"))"
}

map_large() {
    local began
    say "3. mapping it: a C program, compiled and run in $demo"
    if ! command -v cc >/dev/null; then
        say "   left out: no C compiler (apt-get install build-essential)"
        return
    fi
    cat >"$demo/compare.c" <<'C'
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static const char *map(const char *path, size_t *size) {
    struct stat st;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st) != 0) return perror(path), NULL;
    *size = (size_t)st.st_size;
    void *at = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return perror(path), NULL;
    return at;
}

int main(int argc, char **argv) {
    size_t one_size, two_size;
    if (argc != 3) return 2;
    const char *one = map(argv[1], &one_size), *two = map(argv[2], &two_size);
    if (!one || !two) return 2;
    if (one_size != two_size || memcmp(one, two, one_size) != 0) return puts("   mmap: they differ"), 1;
    return printf("   mmap: %zu bytes equal through shared mappings\n", one_size) < 0;
}
C
    cc -O2 -o "$demo/compare" "$demo/compare.c"
    began=$EPOCHREALTIME
    "$demo/compare" "$work/large" "$demo/large" || fail "the mapped file differs"
    say "   ($(seconds "$began"))"
}

run_job() {
    local job=$mount/jobs/by-name/demo
    say "4. a job that reads it"
    cat >"$work/demo" <<'JOB'
#!/bin/sh
set -eu
mkdir -p "$KOS_RESULT"
{
    echo "bytes  $(wc -c <"$KOS_MOUNT/mem/demo/large")"
    echo "sum    $(cksum <"$KOS_MOUNT/mem/demo/large")"
    echo "names  $(find "$KOS_MOUNT/mem/demo/tree" | wc -l)"
} >"$KOS_RESULT/summary"
JOB
    chmod +x "$work/demo"
    cp -- "$work/demo" "$mount/jobs/demo" || fail "the job was refused; see $mount/jobs/rejected/demo.error"
    timeout "$job_seconds_max" cat -- "$job/wait" >"$work/exit" || fail "the job does not end; see $job/status"
    [ "$(cat "$work/exit")" = 0 ] || fail "the job failed; see $job/status, $job/stderr"
    say "   $job/wait: exit status $(cat "$work/exit")"
    say "   $job/result/summary:"
    sed 's/^/   | /' "$job/result/summary"
}

check_mount
work=$(mktemp -d)
copy_tree
copy_large
map_large
run_job
say
df -h -- "$mount"
say
say "It stays mounted. Try next:"
say "  ls -l $demo && cp -a ANY_DIRECTORY $mount/mem/"
say "  cp YOUR_SCRIPT $mount/jobs/ && cat $mount/jobs/by-name/YOUR_SCRIPT/wait     (docs/JOBS.md)"
say "  make stop        (make run brings it back, with the data)"
