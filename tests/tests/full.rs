//! A disk that others fill to the last block: errors that pass, and nothing acked is lost.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, Rng, is_mounted, wait_for};
use rustix::fs::XattrFlags;

const DISK_BYTES: u64 = 256 << 20;
const MIB: usize = 1 << 20;

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn contents(number: u64) -> Vec<u8> {
    Rng::new(number).bytes(8 * MIB)
}

fn health(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.mount().join("sys/health")).expect("health")
}

/// What is on the state's disk.
fn sizes(daemon: &Daemon) -> String {
    let du = Command::new("du").args(["-a", "--apparent-size", "-k"]).arg(daemon.state()).output();
    let metrics = fs::read_to_string(daemon.mount().join("sys/metrics")).expect("metrics");
    format!("{}\n{metrics}", String::from_utf8_lossy(&du.expect("du").stdout))
}

/// Fill the state's disk from outside, to the last block.
fn fill(daemon: &Daemon) -> PathBuf {
    let path = daemon.state().join("foreign");
    let mut file = File::create(&path).expect("create");
    for block in [MIB, 4096, 1] {
        while let Ok(()) = file.write_all(&vec![1; block]) {}
    }
    path
}

#[test]
fn a_disk_filled_by_others_stops_nothing_for_ever() {
    let mut daemon = Daemon::on_disk(DISK_BYTES);
    let (kept, late) = (daemon.mem().join("kept"), daemon.mem().join("late"));
    put(&kept, &contents(1)).expect("room");
    // Taken by write(2) while there was room.
    let mut file = File::create(&late).expect("create");
    file.write_all(&contents(2)).expect("room");
    let foreign = fill(&daemon);
    assert_eq!(file.sync_all().expect_err("no room").kind(), ErrorKind::StorageFull);
    assert_eq!(put(&daemon.mem().join("new"), b"x").expect_err("no room").kind(), ErrorKind::StorageFull);
    assert!(fs::read(&kept).expect("reads need none") == contents(1));
    assert!(fs::read(&late).expect("from memory") == contents(2));
    // Large attributes, until the metadata finds no room.
    let set = |number: u64| {
        let name = format!("user.{number}");
        rustix::fs::setxattr(&kept, name, &[7; 60_000], XattrFlags::empty())
    };
    let set_before = (0..4096).take_while(|&number| {
        let done = set(number);
        assert!(done.is_ok() || done == Err(rustix::io::Errno::NOSPC), "{done:?}");
        done.is_ok()
    });
    assert!(set_before.count() < 1000, "the metadata is on that disk too");
    wait_for("health", || health(&daemon).starts_with("degraded"));
    assert!(fs::read(&kept).expect("reads need none") == contents(1));

    fs::remove_file(foreign).expect("remove");
    // What is in the way is said by whoever it stays in the way of.
    let mut refused = Vec::new();
    let in_time = (0..6000).any(|_| {
        let synced = file.sync_all();
        thread::sleep(Duration::from_millis(10));
        refused.extend(synced.as_ref().err().map(ToString::to_string));
        refused.dedup();
        synced.is_ok()
    });
    assert!(in_time, "{refused:?}\n{}", sizes(&daemon));
    // 4+2 of each file; and what a refused commit had written stays until a restart, once.
    let shards: u64 =
        daemon.segments().iter().map(|path| fs::metadata(path).expect("segment").blocks() * 512).sum();
    assert!(shards < 39 << 20, "{refused:?}\n{}", sizes(&daemon));
    wait_for("metadata", || set(0).is_ok());
    wait_for("health", || health(&daemon) == "ok\n");
    put(&daemon.mem().join("new"), b"x").expect("room");
    let events = fs::read_to_string(daemon.mount().join("sys/events")).expect("events");
    assert!(events.contains(" unflushed inode "), "{events}");
    drop(file);
    daemon.kill();
    daemon.spawn();
    for (path, number) in [(&kept, 1), (&late, 2)] {
        assert!(fs::read(path).expect("read") == contents(number), "{number}");
    }
    daemon.stop();
}

/// Programs that ask for safety while others are refused: the metadata's log must not take that for its end.
#[test]
fn syncs_beside_refused_changes_stop_nothing_for_ever() {
    const PROGRAMS: u8 = 6;
    /// Refusals that each program lives through.
    const REFUSED: u32 = 20;
    let mut daemon = Daemon::on_disk(DISK_BYTES);
    let mem = daemon.mem();
    let path = |program: u8| mem.join(program.to_string());
    // Large attributes go to the metadata at once.
    let change = |program: u8, number: u64| -> std::io::Result<()> {
        let file = File::open(path(program))?;
        rustix::fs::fsetxattr(
            &file,
            format!("user.{}", number % 100),
            &[program; 50_000],
            XattrFlags::empty(),
        )?;
        file.sync_all()
    };
    for program in 0..PROGRAMS {
        put(&path(program), &[program]).expect("room");
    }
    for _ in 0..3 {
        let foreign = fill(&daemon);
        thread::scope(|scope| {
            for program in 0..PROGRAMS {
                let change = &change;
                scope.spawn(move || {
                    let (mut number, mut refused) = (0, 0);
                    while refused < REFUSED {
                        number += 1;
                        if let Err(e) = change(program, number) {
                            assert_eq!(e.kind(), ErrorKind::StorageFull, "{e}");
                            refused += 1;
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                });
            }
        });
        fs::remove_file(foreign).expect("remove");
        for program in 0..PROGRAMS {
            wait_for("room", || change(program, 0).is_ok());
        }
    }
    daemon.kill();
    daemon.spawn();
    for program in 0..PROGRAMS {
        assert_eq!(fs::read(path(program)).expect("read"), [program]);
    }
    daemon.stop();
}

#[test]
fn an_end_on_a_full_disk_unmounts_and_says_what_is_lost() {
    let mut daemon = Daemon::on_disk(DISK_BYTES);
    let (kept, late) = (daemon.mem().join("kept"), daemon.mem().join("late"));
    put(&kept, &contents(1)).expect("room");
    let mut file = File::create(&late).expect("create");
    file.write_all(&contents(2)).expect("room");
    drop(file);
    let foreign = fill(&daemon);
    assert!(!daemon.try_stop().success(), "not all was flushed");
    assert!(!is_mounted(&daemon.mount()), "gone all the same");
    fs::remove_file(foreign).expect("remove");
    daemon.spawn();
    assert!(fs::read(&kept).expect("read") == contents(1), "what was acked is there");
    let mut found = Vec::new();
    File::open(&late).and_then(|mut f| f.read_to_end(&mut found)).expect("read");
    assert!(found.is_empty() || found == contents(2), "a commit or none: {} bytes", found.len());
    daemon.stop();
}
