//! Sealed files that a mount of the socket reads in place.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kos_tests::seal::{map, sealed, unseal};
use kos_tests::{Daemon, Rng, wait_for};
use memmap2::Mmap;
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::second::*;

const MIB: usize = 1 << 20;

/// A descriptor and a mapping that read all bytes, and whether the daemon was asked for none of them.
fn read_all(daemon: &Daemon, path: &Path, data: &[u8]) -> (File, Mmap, bool) {
    let before = daemon.metric("kos_bytes_read_total");
    let file = File::open(path).expect("open");
    assert!(fs::read(path).expect("read") == data);
    let mapping = map(&file);
    assert!(mapping[..] == *data, "mapped");
    let mut direct = vec![0; 4096];
    let past_cache = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("open");
    past_cache.read_exact_at(&mut direct, 8192).expect("O_DIRECT");
    assert_eq!(direct, data[8192..12288]);
    (file, mapping, daemon.metric("kos_bytes_read_total") == before)
}

/// The same of a file that may just have been closed: a descriptor that goes decides for the next one.
fn read_in_place(daemon: &Daemon, path: &Path, data: &[u8]) -> (File, Mmap) {
    let mut found = None;
    wait_for("a read in place", || {
        let (file, mapping, in_place) = read_all(daemon, path, data);
        found = in_place.then_some((file, mapping));
        in_place
    });
    found.expect("in place")
}

#[test]
fn both_mounts_read_a_sealed_file_in_place() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let data = Rng::new(1).bytes(9 * MIB + 12_345);
    // Whichever of them sealed it.
    let paths = [daemon.mem().join("here"), second.mem().join("there")];
    for path in paths.map(|path| sealed(&daemon, path, &data)) {
        let name = path.file_name().expect("a name");
        for reader in [second.mem().join(name), daemon.mem().join(name)] {
            let (.., in_place) = read_all(&daemon, &reader, &data);
            assert!(in_place, "{}: the daemon was asked", reader.display());
        }
    }
    assert_eq!(daemon.metric("kos_copies_bytes"), 2 * data.len() as u64, "one copy of each for both");
    second.umount(false);
    daemon.stop();
}

#[test]
fn what_either_mount_reads_in_place_is_not_unsealed() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let data = Rng::new(2).bytes(3 * MIB);
    let here = sealed(&daemon, daemon.mem().join("file"), &data);
    let there = second.mem().join("file");
    for (reader, other) in [(&there, &here), (&here, &there)] {
        let (file, mapping) = read_in_place(&daemon, reader, &data);
        for path in [reader, other] {
            assert_eq!(unseal(path), Err(Errno::BUSY), "{}", path.display());
        }
        drop(file);
        assert_eq!(unseal(other), Err(Errno::BUSY), "a mapping lives on");
        assert!(mapping[..] == data);
    }
    wait_for("the release", || unseal(&here).is_ok());
    let other = Rng::new(3).bytes(3 * MIB);
    sealed(&daemon, there.clone(), &other);
    for path in [&here, &there] {
        read_in_place(&daemon, path, &other);
    }
    second.umount(false);
    wait_for("the mount's end", || unseal(&here).is_ok());
    daemon.stop();
}

#[test]
fn a_killed_mount_gives_back_what_it_was_lent() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let data = Rng::new(4).bytes(3 * MIB);
    let here = sealed(&daemon, daemon.mem().join("file"), &data);
    let (file, mapping) = read_in_place(&daemon, &second.mem().join("file"), &data);
    kill_process(process, Signal::KILL).expect("kill");
    wait_for_mounts(&daemon, 1);
    // Programs go on reading what they had open in it.
    assert_eq!(unseal(&here), Err(Errno::BUSY));
    assert!(mapping[..] == data);
    drop((file, mapping));
    // The kernel keeps what a mount was lent as long as the dead mount is there.
    second.umount(true);
    wait_for("the release", || unseal(&here).is_ok());
    assert_eq!(daemon.metric("kos_copies_bytes"), 0);
    daemon.stop();
}

#[test]
fn what_a_mount_reads_in_place_outlives_the_daemon() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let data = Rng::new(5).bytes(4 * MIB);
    let here = sealed(&daemon, daemon.mem().join("file"), &data);
    let there = second.mem().join("file");
    let (file, mapping) = read_in_place(&daemon, &there, &data);
    let reads = |when: &str| {
        let mut found = vec![0; data.len()];
        file.read_exact_at(&mut found, 0).unwrap_or_else(|e| panic!("{when}: {e}"));
        assert!(found == data && mapping[..] == data, "{when}");
    };
    for in_order in [false, true] {
        if in_order {
            daemon.stop();
        } else {
            daemon.kill();
        }
        reads("without a daemon");
        daemon.spawn();
        assert_eq!(unseal(&here), Err(Errno::BUSY), "the mount may not be back yet");
        wait_for_mounts(&daemon, 2);
        for path in [&here, &there] {
            assert_eq!(unseal(path), Err(Errno::BUSY), "the mount says what it reads");
        }
        reads("after the next start");
        let (.., in_place) = read_all(&daemon, &there, &data);
        assert!(in_place, "who opens it there now reads the same");
    }
    drop((file, mapping));
    wait_for("the release", || unseal(&here).is_ok());
    let other = Rng::new(6).bytes(4 * MIB);
    sealed(&daemon, here, &other);
    read_in_place(&daemon, &there, &other);
    second.umount(false);
    daemon.stop();
}

/// A process that has the file open, and reads it when it is told to. This one would not do: whatever it starts
/// closes a copy of each of its descriptors, which asks the mount.
fn reader(path: &Path) -> Child {
    let script = "exec 9<\"$1\"; echo; read go; cat <&9";
    let mut reader = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    reader.stdout.as_mut().expect("stdout").read_exact(&mut [0]).expect("it has opened it");
    reader
}

/// A mount that was away for so long that nobody waited for it does not know whether the file is still
/// what it reads.
#[test]
fn what_was_changed_meanwhile_is_not_opened_in_place() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let data = Rng::new(7).bytes(3 * MIB);
    let here = sealed(&daemon, daemon.mem().join("file"), &data);
    let there = second.mem().join("file");
    drop(read_in_place(&daemon, &there, &data));
    let reader = reader(&there);
    assert_eq!(unseal(&here), Err(Errno::BUSY), "it reads in place");
    let stopped = Stopped::new(process);
    daemon.kill();
    daemon.spawn();
    wait_for("its time to be over", || unseal(&here).is_ok());
    let other = Rng::new(8).bytes(3 * MIB);
    sealed(&daemon, here.clone(), &other);
    drop(stopped);
    wait_for_mounts(&daemon, 2);
    // The kernel reads one copy for all of a file's descriptors, and this is not the file any more.
    wait_for("the refusal", || File::open(&there).is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE)));
    assert!(OpenOptions::new().write(true).open(&there).is_err());
    writeln!(reader.stdin.as_ref().expect("stdin")).expect("write");
    let found = reader.wait_with_output().expect("the reader").stdout;
    assert!(found == data, "what was opened before is what it was");
    wait_for("the release", || File::open(&there).is_ok());
    read_in_place(&daemon, &there, &other);
    second.umount(false);
    daemon.stop();
}
