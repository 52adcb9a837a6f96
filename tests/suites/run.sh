#!/usr/bin/env bash
# Suites nobody here wrote, on a node and mount of their own: run.sh [--long]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:?make sets it}
tools=$target/suites
long=
[ "${1:-}" != --long ] || long=1

for crate in pjdfstest@0.2.0 fsx@0.3.1; do
    [ -x "$tools/bin/${crate%@*}" ] ||
        CARGO_TARGET_DIR=$target/suites-build cargo install --quiet --locked --root "$tools" "$crate"
done

if [ "$(id -u)" != 0 ]; then
    echo "suites: mounting needs root: sudo make test" >&2
    exit 1
fi
tmp=$(mktemp -d -t kos-suites.XXXXXX)
chmod 755 "$tmp" # pjdfstest acts as other users
mount=$tmp/mnt
work=$mount/mem/suites
kos() { "$target/release/kos" "$@"; }
failed=()

finish() {
    local status=$?
    umount "$tmp/second" 2>/dev/null || true # absent when setting up failed
    kos down --wipe --state "$tmp/state" || status=1
    rm -rf "$tmp"
    exit "$status"
}
trap finish EXIT

# suite NAME SECONDS COMMAND…: runs in a directory of its own
suite() {
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    mkdir -p "$work/$name"
    if (cd "$work/$name" && timeout --kill-after=10 "$limit" "$@") >"$tmp/$name.log" 2>&1; then
        echo "suites: $name: ok, $((SECONDS - began)) s"
    else
        echo "suites: $name: FAILED after $((SECONDS - began)) s; the end of its log:" >&2
        tail -n 50 "$tmp/$name.log" >&2
        failed+=("$name")
    fi
    rm -rf "${work:?}/$name"
}

posix() {
    # The suite's own option for the second filesystem does nothing in 0.2.
    sed "s|^\[features]|&\nsecondary_fs = \"$tmp/second\"|" "$here/pjdfstest.toml" >"$tmp/pjdfstest.toml"
    "$tools/bin/pjdfstest" -c "$tmp/pjdfstest.toml" -p "$PWD" | tee "$tmp/pjdfstest.out"
    # Every other skip must be explained in docs/SEMANTICS.md first.
    if grep -a 'skipped$' "$tmp/pjdfstest.out" | grep -av -e '::erofs_' -e 'link::link_count_max '; then
        return 1
    fi
    grep -aqE '^Summary: 0 failed, .* 38[4-9] passed' "$tmp/pjdfstest.out"
}

fsx() { # OPERATIONS SEED…
    local operations=$1 seed
    shift
    for seed in "$@"; do
        echo "seed $seed"
        "$tools/bin/fsx" -f "$here/fsx.toml" -N "$operations" -S "$seed" -P "$tmp" "file-$seed"
    done
}

verify() { # ENGINE SIZE
    fio --name=verify --filename=data --rw=randwrite --bs=4k --size="$2" --ioengine="$1" --verify=crc32c \
        --do_verify=1 --verify_fatal=1 --fsync=256 --randseed=1 --io_size="$2"
}

stress() { # SECONDS
    # The sum of what these do is what build farms and mail servers do to a filesystem.
    stress-ng --temp-path "$PWD" --verify --timeout "$1" --metrics-brief --hdd 1 --hdd-bytes 64M --dir 1 \
        --dentry 1 --dentries 500 --rename 1 --link 1 --symlink 1 --chmod 1 --fallocate 1 --fallocate-bytes 32M \
        --mmapfork 0 --seek 1 --seek-size 16M --xattr 1 --copy-file 1 --copy-file-bytes 128M --utime 1
}

sqlite() { # JOURNAL ROWS
    sqlite3 db "PRAGMA journal_mode=$1; CREATE TABLE t(writer, row, text);"
    local writer pids=()
    for writer in 1 2 3 4; do
        for ((row = 0; row < $2; row++)); do
            echo "INSERT INTO t VALUES($writer, $row, hex(randomblob(200)));"
        done | sqlite3 -cmd '.timeout 60000' db &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    [ "$(sqlite3 db 'PRAGMA integrity_check')" = ok ]
    [ "$(sqlite3 db 'SELECT count(*), count(DISTINCT writer * 1000000 + row) FROM t')" = "$((4 * $2))|$((4 * $2))" ]
}

repository() {
    git init -q origin
    (
        cd origin
        cp -r "$here/../../." . && rm -rf .git && git init -q
        find . -name .git -prune -o -type d -empty -print0 | xargs -0r rmdir # git does not keep them
        git -c user.name=t -c user.email=t@t add -A
        git -c user.name=t -c user.email=t@t commit -qm one
    )
    git clone -q --no-hardlinks origin copy
    git -C copy gc -q --aggressive --prune=now
    git -C copy fsck --full --strict
    diff -r --exclude=.git origin copy
}

round_trip() {
    mkdir source
    cp -a "$here/../../fabricd" source/tree
    ln source/tree/Cargo.toml source/hard
    ln -s tree/none source/dangling
    truncate -s 1G source/sparse
    echo end >>source/sparse
    setfattr -n user.note -v text source/hard
    setfacl -m u:daemon:r source/hard
    mkfifo source/fifo
    rsync -aHAXS source/ "$tmp/out/"
    rsync -aHAXS "$tmp/out/" back/
    [ -z "$(rsync -aHAXSn --delete --itemize-changes --checksum source/ back/)" ]
    rm -rf "$tmp/out"
}

build() {
    local i
    for i in $(seq 60); do
        printf '#include <stdio.h>\nint f%d(int x) { return x + %d; }\n' "$i" "$i" >"f$i.c"
    done
    {
        seq 60 | sed 's/.*/int f&(int);/'
        echo 'int main(void) { int x = 0;'
        seq 60 | sed 's/.*/x = f&(x);/'
        echo 'return x == 1830 ? 0 : 1; }'
    } >main.c
    # shellcheck disable=SC2016 # make's variables
    printf 'all: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tcc -o all $^\n' >Makefile
    make -j4 -s
    ./all
}

mkdir "$mount" "$tmp/second"
mount -t tmpfs none "$tmp/second"
kos up --state "$tmp/state" --mount "$mount" --tier-ram 256M
export -f posix fsx verify stress sqlite repository round_trip build
export here tools tmp
run() { # NAME SECONDS FUNCTION ARGUMENT…
    local name=$1 limit=$2
    shift 2
    # The function's own words, not this shell's.
    # shellcheck disable=SC2016
    suite "$name" "$limit" bash -euo pipefail -c '"$@"' bash "$@"
}

if [ -n "$long" ]; then
    run pjdfstest 600 posix
    run fsx 7200 fsx 50000 1 2 3 4 5 6 7 8 9 10
    run fio 1800 verify psync 1G
    run fio-mmap 1800 verify mmap 512M
    run stress 1200 stress 120
    run sqlite-wal 1800 sqlite WAL 20000
    run sqlite-rollback 3600 sqlite DELETE 2000
else
    run pjdfstest 300 posix
    run fsx 400 fsx 3000 1 2 3
    run fio 200 verify psync 32M
    run fio-mmap 200 verify mmap 32M
    run stress 200 stress 5
    run sqlite-wal 200 sqlite WAL 500
    run sqlite-rollback 300 sqlite DELETE 50
fi
run git 300 repository
run rsync 300 round_trip
run build 300 build

if [ ${#failed[@]} -gt 0 ]; then
    echo "suites: FAILED: ${failed[*]}" >&2
    tail -n 50 "$tmp/state/log/fabricd.log" >&2
    exit 1
fi
