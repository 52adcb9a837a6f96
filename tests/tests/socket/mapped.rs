//! Shared mappings of one file through two mounts: what each stores, both see, and nothing is lost.
#![expect(unsafe_code, reason = "mmap")]

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kos_tests::Daemon;
use memmap2::{MmapMut, MmapOptions};

use crate::second::*;

const PAGE: usize = 4096;
const PAGES: usize = 3;
/// Words of a page that each of the two owns: every other one.
const OWN: usize = PAGE / 8 / 2;
/// Far more than it takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);
/// What a process of [`maps`] is told: the file, whose words, how often, and whether it waits for the other.
const FILE: &str = "KOS_MAPS_FILE";
const OWNER: &str = "KOS_MAPS_OWNER";
const ROUNDS: &str = "KOS_MAPS_ROUNDS";
const TURNS: &str = "KOS_MAPS_TURNS";

fn map(path: &Path) -> MmapMut {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    // SAFETY: another process changes it, and every word is read and written whole, by one of them.
    unsafe { MmapOptions::new().map_mut(&file).expect("mmap") }
}

fn word(map: &MmapMut, nth: usize) -> u64 {
    // SAFETY: words are aligned and inside of the mapping; the other process may change them at any time.
    unsafe { std::ptr::read_volatile(map.as_ptr().cast::<u64>().add(nth)) }
}

fn set_word(map: &mut MmapMut, nth: usize, value: u64) {
    // SAFETY: as above.
    unsafe { std::ptr::write_volatile(map.as_mut_ptr().cast::<u64>().add(nth), value) }
}

/// The words of one of the two, in all pages.
fn own(owner: usize) -> impl Iterator<Item = usize> {
    (0..PAGES * OWN).map(move |nth| nth * 2 + owner)
}

/// No test of its own: one of the two processes.
#[test]
#[ignore = "no test: it is started by the others"]
fn maps() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let number = |name: &str| std::env::var(name).expect(name).parse::<u64>().expect("a number");
    let (owner, rounds, turns) = (number(OWNER) as usize, number(ROUNDS), number(TURNS) > 0);
    let mut map = map(Path::new(&path));
    let start = Instant::now();
    for round in 1..=rounds {
        for nth in own(owner) {
            assert_eq!(word(&map, nth), round - 1, "word {nth} of {owner}: a store was lost");
            set_word(&mut map, nth, round);
        }
        // The last word says that the round is done.
        let other = own(1 - owner).last().expect("words");
        while turns && word(&map, other) < round {
            assert!(start.elapsed() < DEADLINE, "round {round}: the other's stores are not seen");
            thread::yield_now();
        }
    }
}

fn start(path: &Path, owner: usize, rounds: u64, turns: bool) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--ignored", "--exact", "mapped::maps", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .env(OWNER, owner.to_string())
        .env(ROUNDS, rounds.to_string())
        .env(TURNS, u8::from(turns).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("a process")
}

/// Two processes, each with a mapping of its own mount, store into their own words of the same pages.
fn both_store(rounds: u64, turns: bool) {
    let mut daemon = Daemon::with_ram(256 << 20);
    fs::write(daemon.mem().join("mapped"), vec![0; PAGES * PAGE]).expect("write");
    let second = Second::mount(&daemon);
    let paths = [daemon.mem().join("mapped"), second.mem().join("mapped")];
    let mut children = [0, 1].map(|owner| start(&paths[owner], owner, rounds, turns));
    for child in &mut children {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("child") {
                break status;
            }
            if start.elapsed() > DEADLINE {
                child.kill().expect("kill");
                panic!("not within {DEADLINE:?}");
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
    }
    for path in &paths {
        let found = fs::read(path).expect("read");
        assert!(found.chunks(8).all(|word| word == rounds.to_le_bytes()), "all stores of both");
    }
    second.umount(false);
    daemon.stop();
    daemon.spawn();
    let found = fs::read(daemon.mem().join("mapped")).expect("read");
    assert!(found.chunks(8).all(|word| word == rounds.to_le_bytes()), "after a restart");
    daemon.stop();
}

#[test]
fn stores_of_two_mounts_into_one_page_are_all_kept() {
    both_store(20_000, false);
}

#[test]
fn two_mounts_take_turns_at_a_page() {
    both_store(40, true);
}

#[test]
fn mappings_from_before_and_after_the_second_mount_are_one() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let path = daemon.mem().join("mapped");
    fs::write(&path, vec![0; PAGES * PAGE]).expect("write");
    let mut first = map(&path);
    set_word(&mut first, 0, 1);
    let second = Second::mount(&daemon);
    let mut other = map(&second.mem().join("mapped"));
    assert_eq!(word(&other, 0), 1, "stored before there was another mount");
    for round in 2..30 {
        let (writer, reader) = if round % 2 == 0 { (&mut other, &first) } else { (&mut first, &other) };
        set_word(writer, (round % 500) as usize, round);
        assert_eq!(word(reader, (round % 500) as usize), round, "seen at once");
    }
    drop(other);
    second.umount(false);
    // It may be alone again, and keeps what it has.
    assert_eq!((word(&first, 28), word(&first, 29)), (28, 29));
    set_word(&mut first, 1, 77);
    drop(first);
    assert_eq!(fs::read(&path).expect("read")[8..16], 77_u64.to_le_bytes());
    daemon.stop();
}

/// The kernel ignores the size that it is told where it throws out pages at that time: who was told of it and reads it
/// through a mapping would be killed.
#[test]
fn a_mapping_has_what_the_size_says_while_another_mount_adds_to_the_file() {
    const ADDED: u64 = 300;
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    for (name, grows, looks) in [("there", daemon.mem(), second.mem()), ("here", second.mem(), daemon.mem())]
    {
        let grown = AtomicU64::new(0);
        let ends = AtomicBool::new(false);
        File::create(grows.join(name)).expect("create");
        thread::scope(|scope| {
            scope.spawn(|| {
                let file = OpenOptions::new().write(true).open(grows.join(name)).expect("open");
                for round in 0..ADDED {
                    // Within a page, and by several.
                    let end = grown.load(Ordering::SeqCst) + [100, 5000, 40_000][(round % 3) as usize];
                    file.write_all_at(b"x", end - 1).expect("write");
                    grown.store(end, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(round % 3));
                }
                ends.store(true, Ordering::SeqCst);
            });
            scope.spawn(|| {
                while !ends.load(Ordering::SeqCst) {
                    fs::metadata(looks.join(name)).expect("stat");
                }
            });
            let mut file = OpenOptions::new().read(true).write(true).open(looks.join(name)).expect("open");
            let (start, mut seen) = (Instant::now(), 0);
            while seen < grown.load(Ordering::SeqCst) || !ends.load(Ordering::SeqCst) {
                assert!(start.elapsed() < DEADLINE, "{name}: seen {seen} of {grown:?}");
                let len = file.metadata().expect("fstat").len();
                if len == seen {
                    continue;
                }
                seen = len;
                let page = (len - 1) / PAGE as u64 * PAGE as u64;
                // SAFETY: what is read is there, which is what this is about; another mount changes nothing of it.
                let last = unsafe { MmapOptions::new().offset(page).len((len - page) as usize).map(&file) };
                assert_eq!(last.expect("mmap").last(), Some(&b'x'));
                assert!(file.seek(SeekFrom::End(0)).expect("seek") >= len);
                let mut byte = [0];
                file.read_exact_at(&mut byte, len - 1).expect("read");
                assert_eq!(byte, *b"x");
            }
        });
    }
    second.umount(false);
    daemon.stop();
}
