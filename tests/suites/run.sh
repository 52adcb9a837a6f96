#!/usr/bin/env bash
# Suites nobody here wrote, on a node and mount of their own: run.sh [--long] [SUITE…]; one-mount and two-mounts are all
# of the first and of the second kind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:?make sets it}
tools=$target/suites
long=
[ "${1:-}" != --long ] || { long=1 && shift; }
wanted=" $* "

for crate in pjdfstest@0.2.0 fsx@0.3.1; do
    [ -x "$tools/bin/${crate%@*}" ] ||
        CARGO_TARGET_DIR=$target/suites-build cargo install --quiet --locked --root "$tools" "$crate"
done

if [ "$(id -u)" != 0 ]; then
    echo "suites: mounting needs root: sudo make test" >&2
    exit 1
fi
# These name the user's own node.
unset KOS_MOUNT KOS_STATE
tmp=$(mktemp -d -t kos-suites.XXXXXX)
chmod 755 "$tmp" # pjdfstest and PostgreSQL act as other users
mount=$tmp/mnt
other=$tmp/other # where the same node is mounted again
work=$mount/mem/suites
daemon_log=$tmp/state/log/fabricd.log
# The repository may be another user's. A file, because git clears the environment for its other end.
export GIT_CONFIG_GLOBAL=$tmp/gitconfig
printf '[safe]\n\tdirectory = *\n[user]\n\tname = t\n\temail = t@t\n' >"$GIT_CONFIG_GLOBAL"
kos() { timeout --kill-after=10 120 "$target/release/kos" "$@"; }
up() { kos up --state "$tmp/state" --mount "$mount" --tier-ram 256M; }
minutes() { printf '%d.%02d min' $(($1 / 60)) $(($1 % 60 * 100 / 60)); }
began_all=$SECONDS
ran=0
failed=()

finish() {
    local status=$? key pid
    local pids=()
    trap - EXIT
    cd /
    # Absent when setting up failed.
    umount "$tmp/second" 2>/dev/null || true
    umount "$other" 2>/dev/null || true
    if [ -d "$tmp/state" ]; then
        # The supervisor first: it would start the daemon again.
        for key in supervisor pid; do
            pids+=($(sed -n "s/.*\"$key\": *\([0-9][0-9]*\).*/\1/p" "$tmp/state/run.json" 2>/dev/null)) || true
        done
        if ! kos down --wipe --state "$tmp/state"; then
            status=1
            tail -n 50 "$daemon_log" >&2 || true # what it was doing; it goes with the rest
            # Only the processes of this run have this state in their arguments.
            for pid in "${pids[@]}"; do
                if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$tmp/state"; then
                    kill -9 "$pid" || true
                fi
            done
            umount -l "$mount" 2>/dev/null || true # gone already when only wiping failed
            umount -l "$tmp/state/ram" 2>/dev/null || true
        fi
    fi
    rm -rf --one-file-system "$tmp" || status=1
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# run NAME SECONDS FUNCTION ARGUMENT…: one suite in a directory of its own, under its deadline
run() {
    local name=$1 limit=$2 began=$SECONDS status=0
    shift 2
    [[ "$wanted" = "  " || "$wanted" = *" $name "* || "$wanted" = *" $kind "* ]] || return 0
    ran=$((ran + 1))
    # The function's own words, not this shell's.
    # shellcheck disable=SC2016
    { mkdir -p "$work/$name" && cd "$work/$name" &&
        timeout --kill-after=10 "$limit" bash -euo pipefail -c '"$@"' bash "$@"; } \
        >"$tmp/$name.log" 2>&1 </dev/null || status=$?
    cd "$tmp"
    # A suite that passes on a node that is down or degraded after it has not passed.
    kos status --state "$tmp/state" >>"$tmp/$name.log" 2>&1 || status="$status, kos status $?"
    if [ "$status" = 0 ]; then
        echo "suites: $name: ok, $(minutes $((SECONDS - began)))"
    else
        {
            echo "suites: $name: FAILED (exit $status; 124 is the deadline of $limit s)" \
                "after $(minutes $((SECONDS - began))); the end of its log:"
            tail -n 50 "$tmp/$name.log"
            echo "suites: $name: the end of the daemon's log, and of the other mounts':"
            tail -n 50 "$daemon_log" "${daemon_log%/*}/mount.log" 2>/dev/null || true
        } >&2
        failed+=("$name")
        up >&2 || true # the others shall run all the same
    fi
    timeout --kill-after=10 120 rm -rf "${work:?}/$name" || failed+=("$name's removal")
}

# Each of these is explained in docs/SEMANTICS.md; any other skip is a failure.
posix_skips="chmod::erofs_named chown::erofs_named chown::lchown::erofs_named link::erofs_named
    link::link_count_max mkdir::erofs_new_file mkfifo::erofs_new_file open::erofs_named open::erofs_new_file
    rename::erofs_named rmdir::erofs_named symlink::erofs_new_file truncate::erofs_named unlink::erofs_named"
posix_passes=384

posix() {
    # The suite's own option for the second filesystem does nothing in 0.2.
    sed "s|^\[features]|&\nsecondary_fs = \"$tmp/second\"|" "$here/pjdfstest.toml" >"$tmp/pjdfstest.toml"
    "$tools/bin/pjdfstest" -c "$tmp/pjdfstest.toml" -p "$PWD" | tee "$tmp/pjdfstest.out"
    local name summary passed unknown=
    while read -r name _; do
        grep -qFx "$name" <(xargs -n1 <<<"$posix_skips") || unknown+=" $name"
    done < <(grep -a 'skipped$' "$tmp/pjdfstest.out")
    summary=$(grep -a '^Summary: 0 failed, ' "$tmp/pjdfstest.out")
    passed=${summary%% passed*}
    passed=${passed##* }
    echo "passed $passed of at least $posix_passes; skipped without an explanation:${unknown:- none}"
    [ -z "$unknown" ] && [ "$passed" -ge "$posix_passes" ]
}

exercise() { # CONFIGURATION OPERATIONS SEED…: four seeds at once
    local configuration=$1 operations=$2
    shift 2
    printf '%s\n' "$@" | xargs -P 4 -I{} sh -c '"$@" || { echo "seed {} failed"; exit 1; }' sh \
        "$tools/bin/fsx" -f "$here/$configuration.toml" -N "$operations" -S {} -P "$tmp" file-{}
}

# The same, with a file that is now in one mount and now in the other: fsx opens its file anew all the time, and finds
# a symbolic link there that leads to both by turns.
exercise_two() { # CONFIGURATION OPERATIONS SEED…
    local configuration=$1 operations=$2 seed turns turner
    shift 2
    sed 's/^close_open = .*/close_open = 8.0/' "$here/$configuration.toml" >"$tmp/two.toml"
    for seed in "$@"; do
        echo "seed $seed"
        local name=$PWD/file-$seed link=$tmp/file-$seed
        touch "$name"
        ln -s "$name" "$link"
        (
            turns=0
            while [ ! -e "$tmp/turned" ]; do
                ln -s "${name/#$mount/$other}" "$link.new" && mv -T "$link.new" "$link"
                sleep 0.01
                ln -s "$name" "$link.new" && mv -T "$link.new" "$link"
                sleep 0.01
                echo $((turns += 1)) >"$tmp/turns"
            done
        ) &
        turner=$!
        "$tools/bin/fsx" -f "$tmp/two.toml" -N "$operations" -S "$seed" -P "$tmp" "$link"
        touch "$tmp/turned"
        wait "$turner"
        rm "$link" "$tmp/turned"
        cmp "$name" "${name/#$mount/$other}"
        echo "turns: $(cat "$tmp/turns")"
        [ "$(cat "$tmp/turns")" -ge 10 ]
    done
}

# verify ENGINE SIZE OPTION…: blocks of a file that is there are overwritten twice in random order, and read again.
verify() {
    local engine=$1 size=$2
    shift 2
    fio --name=verify --filename=data --rw=randwrite --overwrite=1 --loops=2 --bs=4k --size="$size" \
        --ioengine="$engine" --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=256 --randseed=1 "$@"
}

# What works on tmpfs and ext4 with Debian 12's stress-ng, which has no mmapfile, punch or filerace. Left out: fiemap
# (FUSE has no such ioctl, nor has tmpfs), verity (nobody has it here), sync (it syncs the whole machine; it fails on
# tmpfs too), and what needs a device.
stressors="access chdir chmod chown close copy-file dentry dir dirdeep dirmany dup fallocate fcntl file-ioctl filename
    flock fpunch fsize fstat getdent handle hdd inotify io iomix lease link locka lockf lockofd mknod mmap mmapfork msync
    open readahead rename revio seek sendfile splice symlink sync-file touch utime xattr"

stress() { # SECONDS-EACH SECONDS-TOGETHER
    local name all=() sizes=(--hdd-bytes 64M --dentries 500 --fallocate-bytes 32M --seek-size 16M
        --copy-file-bytes 128M --iomix-bytes 64M --mmap-bytes 64M --readahead-bytes 64M --revio-bytes 64M
        --sync-file-bytes 64M --mmap-file --dirdeep-inodes 2000)
    for name in $stressors; do
        mkdir "$name"
        echo "alone: $name"
        stress-ng --temp-path "$PWD/$name" --verify --timeout "$1" "${sizes[@]}" "--$name" 2 2>&1 | tee "$tmp/stress.out"
        if grep -q 'skipping' "$tmp/stress.out"; then return 1; fi
        rm -r "$name"
    done
    # Together: what build farms and mail servers do to a filesystem.
    for name in hdd dir dentry rename link symlink chmod chown fallocate fpunch seek xattr copy-file utime; do
        all+=("--$name" 1)
    done
    stress-ng --temp-path "$PWD" --verify --timeout "$2" "${sizes[@]}" "${all[@]}"
}

# sqlite JOURNAL ROWS [DIRECTORY]: four writers, two of them by another path to this directory
sqlite() {
    [ "$(sqlite3 db "PRAGMA journal_mode=$1; CREATE TABLE t(writer, row, text);")" = "${1,,}" ]
    local writer row pid db
    # Not local: where one fails, the others are ended when the function is over.
    pids=()
    trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
    for writer in 1 2 3 4; do
        db=$PWD/db
        [ $((writer % 2)) = 0 ] || db=${3:-$PWD}/db
        for ((row = 0; row < $2; row++)); do
            echo "INSERT INTO t VALUES($writer, $row, hex(randomblob(200)));"
        done | sqlite3 -bail -cmd '.log stderr' -cmd '.timeout 60000' "$db" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    [ "$(sqlite3 db 'PRAGMA integrity_check')" = ok ]
    [ "$(sqlite3 db 'SELECT count(*), count(DISTINCT writer * 1000000 + row) FROM t')" = "$((4 * $2))|$((4 * $2))" ]
}

# pgbench's transactions, an end without warning, and every page's checksum.
postgres() { # SCALE SECONDS
    local sums before after
    # Not local: the trap below runs when the function is over.
    account=postgres
    bin=$(dirname "$(readlink -f "$initdb")")
    id "$account" >/dev/null
    as() { runuser -u "$account" -- "$@"; }
    pg() { as "$bin/pg_ctl" -D "$PWD/data" -l "$PWD/log" -w -t 60 "$@"; }
    query() { as "$bin/psql" -h "$PWD" -d postgres -Atc "$1"; }
    chown "$account" .
    as "$bin/initdb" -D "$PWD/data" --data-checksums --auth=trust >/dev/null
    trap 'pg stop -m immediate || true' EXIT # of this suite's own shell; harmless when it is stopped
    pg start -o "-c listen_addresses= -k '$PWD' -c wal_sync_method=fdatasync"
    as "$bin/pgbench" -h "$PWD" -q -i -s "$1" postgres
    as "$bin/pgbench" -h "$PWD" -c 4 -j 2 -T "$2" postgres
    sums="SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history),
        (SELECT count(*) FROM pgbench_history)"
    before=$(query "$sums")
    pg stop -m immediate
    pg start -o "-c listen_addresses= -k '$PWD'"
    after=$(query "$sums")
    echo "before $before, after recovery $after"
    [[ "$before" = t\|[1-9]* && "$before" = "$after" ]]
    as "$bin/pg_amcheck" -h "$PWD" -d postgres --install-missing --heapallindexed
    pg stop
    as "$bin/pg_checksums" --check -D "$PWD/data"
}

clone() {
    if git -C "$repository" rev-parse -q --verify HEAD >/dev/null; then
        git clone -q "file://$repository" origin
    else # unpacked from an archive
        git init -q origin
        tar -C "$repository" -c --exclude=.git . | tar -C origin -x
        git -C origin add -A
        git -C origin commit -qm one
    fi
    git clone -q "file://$PWD/origin" copy
    git -C copy gc -q --aggressive --prune=now
    git -C copy fsck --full --strict
    find copy/ -name '*.rs' -exec sed -i '1i // changed' {} +
    git -C copy commit -qam two
    git -C origin pull -q "file://$PWD/copy" HEAD
    git -C origin fsck --full --strict
    [ -z "$(git -C origin status --porcelain)" ]
    diff -r --no-dereference --exclude=.git origin copy
}

# tree DIRECTORY: all that rsync and tar can carry
tree() {
    mkdir -p "$1/deep/er"
    cp -a "$repository/fabricd" "$1/tree"
    ln "$1/tree/Cargo.toml" "$1/hard"
    ln "$1/hard" "$1/deep/er/hard"
    ln -s tree/none "$1/dangling"
    ln -s ../tree "$1/deep/link"
    truncate -s 200M "$1/sparse"
    echo end >>"$1/sparse"
    echo middle | dd of="$1/sparse" bs=1M seek=100 conv=notrunc status=none
    setfattr -n user.note -v text "$1/hard"
    setfattr -n user.note -v directory "$1/deep"
    setfacl -m u:daemon:r "$1/hard"
    setfacl -d -m g:daemon:rx "$1/deep"
    mkfifo "$1/fifo"
    chown -h daemon:nogroup "$1/dangling"
    chown daemon:nogroup "$1/deep/er"
    chmod 2751 "$1/deep/er"
    touch -d '1999-12-31 23:59:59.123456789' "$1/sparse"
}

# same A B: rsync finds nothing to do, and diff, which looks at the bytes, no difference
same() {
    local changes
    changes=$(rsync -aHAXSn --delete --itemize-changes --checksum "$1/" "$2/")
    echo "changes: ${changes:-none}"
    [ -z "$changes" ]
    diff -r --no-dereference --exclude=fifo "$1" "$2" # a fifo differs from a fifo, diff says
    [ "$(stat -c %h "$2/deep/er/hard")" = 3 ]
    [ "$(stat -c %b "$2/sparse")" -lt 4096 ]
    [ "$(stat -c %y "$1/sparse")" = "$(stat -c %y "$2/sparse")" ]
    [ "$(getfacl -cp "$1/deep" "$1/hard")" = "$(getfacl -cp "$2/deep" "$2/hard")" ]
    [ "$(getfattr -dm- "$1/deep" | tail -n +2)" = "$(getfattr -dm- "$2/deep" | tail -n +2)" ]
}

round_trip() {
    tree source
    rsync -aHAXS source/ "$tmp/out/"
    same source "$tmp/out"
    rsync -aHAXS "$tmp/out/" back/
    same source back
    # Half of it again: rsync's renames over files that are there.
    find back/tree -name '*.rs' -exec sh -c 'echo changed >>"$1"' sh {} \;
    rsync -aHAXS --delete source/ back/
    same source back
    rm -rf "$tmp/out"
}

archive() {
    tree source
    tar --acls --xattrs --xattrs-include='user.*' --sparse -cf archive.tar -C source .
    tar --acls --xattrs --compare -f archive.tar -C source
    mkdir back
    tar --acls --xattrs --xattrs-include='user.*' --sparse -xpf archive.tar -C back
    same source back
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
    printf 'all: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tcc -o all $^\nlib.a: all\n\tar rcs $@ f*.o\n' >Makefile
    make -j4 -s lib.a
    ./all
    make -q lib.a # nothing is older than what it is made of
    touch f7.c
    [ "$(make lib.a | grep -c -- '-c ')" = 1 ]
    ./all
}

mkdir "$mount" "$other" "$tmp/second"
mount -t tmpfs none "$tmp/second"
up
export -f posix exercise exercise_two verify stress sqlite postgres clone tree same round_trip archive build
# Debian keeps PostgreSQL's server programs off the PATH.
initdb=$(command -v initdb || find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1) || initdb=
export here repository tools tmp mount other posix_skips posix_passes stressors initdb

kind=one-mount
if [ -n "$long" ]; then
    run pjdfstest 600 posix
    run fsx 7200 exercise fsx 50000 1 2 3 4 5 6 7 8 9 10
    run fsx-aligned 3600 exercise fsx-aligned 50000 11 12 13
    run fio 1800 verify psync 1G
    run fio-mmap 1800 verify mmap 1G
    run fio-direct 1800 verify libaio 1G --direct=1 --iodepth=16
    run stress 3600 stress 20 300
    run sqlite-wal 1800 sqlite WAL 20000
    run sqlite-rollback 3600 sqlite DELETE 2000
else
    run pjdfstest 300 posix
    run fsx 300 exercise fsx 5000 1 2 3
    run fsx-aligned 120 exercise fsx-aligned 5000 11
    run fio 120 verify psync 64M
    run fio-mmap 120 verify mmap 64M
    run fio-direct 120 verify libaio 64M --direct=1 --iodepth=16
    run stress 300 stress 1 10
    run sqlite-wal 200 sqlite WAL 500
    run sqlite-rollback 300 sqlite DELETE 50
fi
if [ -n "$initdb" ]; then
    if [ -n "$long" ]; then run postgres 1200 postgres 20 300; else run postgres 200 postgres 1 8; fi
else
    echo "suites: postgres: left out: initdb is not installed (apt-get install postgresql)"
fi
run git 300 clone
run rsync 300 round_trip
run tar 300 archive
run build 300 build

# Two mounts of one node, whose locks exclude each other.
kind=two-mounts
kos down --state "$tmp/state"
up
"$target/release/mount-kosfs" "$tmp/state/kos.sock" "$other" -o rw
if [ -n "$long" ]; then
    run fsx-two-mounts 7200 exercise_two fsx 50000 1 2 3
    run fsx-two-mounts-aligned 3600 exercise_two fsx-aligned 50000 11
    run sqlite-two-mounts 3600 sqlite DELETE 2000 "$other/mem/suites/sqlite-two-mounts"
    run sqlite-two-mounts-wal 3600 sqlite WAL 20000 "$other/mem/suites/sqlite-two-mounts-wal"
else
    run fsx-two-mounts 300 exercise_two fsx 1500 1 2
    run fsx-two-mounts-aligned 120 exercise_two fsx-aligned 1500 11
    run sqlite-two-mounts 300 sqlite DELETE 50 "$other/mem/suites/sqlite-two-mounts"
    run sqlite-two-mounts-wal 300 sqlite WAL 200 "$other/mem/suites/sqlite-two-mounts-wal"
fi

echo "suites: $ran suites, $(minutes $((SECONDS - began_all)))"
if [ ${#failed[@]} -gt 0 ]; then
    echo "suites: FAILED: ${failed[*]}" >&2
    exit 1
fi
if [ "$ran" = 0 ]; then
    echo "suites: none is called$wanted" >&2
    exit 2
fi
