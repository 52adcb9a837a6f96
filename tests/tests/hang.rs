//! Disks that hang: what needs them is never answered, as of a controller that is stuck. Nobody waits for ever, and
//! when they answer again everything goes on.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kos_tests::power::{Cut, Disk, Hang, PowerFs};
use kos_tests::{Daemon, Rng, binary, faulty_daemon, mark_state, seed, wait_for};
use rustix::fs::Advice;

const DISK_BYTES: u64 = 2 << 30;
/// Several stripes and an end that is not whole.
const LEN: usize = (9 << 20) + 12_345;
/// Far more than any request may take, and less than for ever.
const DEADLINE: Duration = Duration::from_secs(240);

/// A node whose disks can hang.
struct Machine {
    // Ends before its disk does.
    daemon: Daemon,
    power: PowerFs,
}

impl Machine {
    /// One that waits a quarter of the time.
    fn start() -> Self {
        Self::start_with(|daemon| {
            daemon.program = faulty_daemon();
            daemon.env.push(("KOS_HASTE".into(), "4".into()));
        })
    }

    fn start_with(set: impl FnOnce(&mut Daemon)) -> Self {
        let mut daemon = Daemon::unstarted(0);
        set(&mut daemon);
        let power = PowerFs::mount(&daemon.state(), Disk::new(DISK_BYTES));
        mark_state(&daemon.state());
        daemon.spawn();
        Self { daemon, power }
    }

    /// Write a file and fsync it.
    fn put(&self, name: &str, seed: u64) -> io::Result<()> {
        let path = self.daemon.mem().join(name);
        within("write and fsync", move || {
            let mut file = File::create(path)?;
            file.write_all(&Rng::new(seed).bytes(LEN))?;
            file.sync_all()
        })
    }

    /// What is in a file, past the kernel's cache.
    fn get(&self, name: &str) -> io::Result<Vec<u8>> {
        let path = self.daemon.mem().join(name);
        within("read", move || {
            forget(&path)?;
            fs::read(path)
        })
    }

    /// Let a directory of the state hang, of which nothing is cached.
    fn hang(&self, dir: &str) -> Hang {
        let below = self.daemon.state().join(dir);
        // Only there: another one may hang already.
        let segments = self.daemon.segments().into_iter().filter(|segment| segment.starts_with(&below));
        segments.for_each(|segment| forget(&segment).expect("forget"));
        self.power.hang_dir(dir)
    }

    fn has(&self, name: &str, seed: u64) {
        let data = self.get(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(data == Rng::new(seed).bytes(LEN), "{name}");
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.control("metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().expect("a number")
    }

    fn control(&self, name: &str) -> String {
        let path = self.daemon.mount().join("sys").join(name);
        within("a control file", move || fs::read_to_string(path)).expect("control file")
    }

    /// The exit code of a command of `kos`, and what it says.
    fn kos(&self, name: &str, more: &[&OsStr]) -> (Option<i32>, String) {
        let mut command = Command::new(binary("kos"));
        command.arg(name).arg("--state").arg(self.daemon.state()).args(more);
        let Output { status, stdout, stderr } =
            within(&format!("kos {name}"), move || command.output()).expect("kos");
        (status.code(), String::from_utf8([stdout, stderr].concat()).expect("text"))
    }

    /// The exit code of `kos status`: 0 is ok, 4 degraded.
    fn status(&self) -> Option<i32> {
        self.kos("status", &[]).0
    }

    fn is_well(&self) {
        wait_for("health", || self.control("health") == "ok\n");
        wait_for("kos status", || self.status() == Some(0));
    }
}

/// Let the page cache go of a file.
fn forget(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::fadvise(File::open(path)?, 0, None, Advice::DontNeed)?)
}

/// Do something that must end.
fn within<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    let begun = Instant::now();
    thread::spawn(move || done.send(act()));
    let result = ended.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{what}: hangs"));
    println!("{what}: {:?}", begun.elapsed());
    result
}

#[test]
fn a_hanging_place_is_read_around_and_written_past() {
    // With the real limits.
    let machine = Machine::start_with(|_| ());
    machine.put("before", 1).expect("write");
    let hang = machine.hang("shards/2");
    machine.has("before", 1);
    machine.put("meanwhile", 2).expect("write");
    machine.has("meanwhile", 2);
    assert!(hang.requests() > 0, "it hangs");
    wait_for("the count", || machine.metric("kos_place_silences_total") == 1);
    assert_eq!(machine.metric("kos_places_silent"), 1);
    for counter in ["kos_shards_bad_total", "kos_stripes_lost_total"] {
        assert_eq!(machine.metric(counter), 0, "{counter}: nothing is damaged");
    }
    wait_for("health", || {
        machine.control("health").starts_with("degraded: 1 state directories do not answer")
    });
    wait_for("kos status", || machine.status() == Some(4));
    assert_eq!(machine.control("events").matches(" silent ").count(), 1);
    drop(hang);
    machine.is_well();
    assert_eq!(machine.control("events").matches(" answers ").count(), 1);
    machine.put("after", 3).expect("write");
    let mut machine = machine;
    for _ in 0..2 {
        (1..).zip(["before", "meanwhile", "after"]).for_each(|(seed, name)| machine.has(name, seed));
        machine.daemon.stop();
        machine.daemon.spawn();
    }
}

#[test]
fn a_write_goes_past_a_place_that_begins_to_hang() {
    let machine = Machine::start();
    let hang = machine.hang("shards/4");
    machine.put("file", 1).expect("write");
    assert!(hang.requests() > 0, "it hangs");
    machine.has("file", 1);
    drop(hang);
    machine.is_well();
    machine.has("file", 1);
}

#[test]
fn what_is_fsynced_while_a_place_does_not_sync_survives_a_power_cut() {
    let mut machine = Machine::start();
    // So that its segments are there.
    machine.put("before", 1).expect("write");
    let hang = machine.power.hang_syncs("shards/1");
    machine.put("first", 2).expect("the others are enough");
    assert!(hang.requests() > 0, "it hangs");
    machine.put("second", 3).expect("write");
    let off = machine.power.cut_power();
    drop(hang);
    machine.daemon.kill();
    machine.power.restart(&off, Cut::Nothing, &mut Rng::new(seed()));
    machine.daemon.spawn();
    (1..).zip(["before", "first", "second"]).for_each(|(seed, name)| machine.has(name, seed));
    machine.is_well();
}

#[test]
fn shards_that_did_not_become_stable_are_rebuilt() {
    let machine = Machine::start();
    machine.put("before", 1).expect("write");
    let hang = machine.power.hang_syncs("shards/1");
    machine.put("file", 2).expect("the others are enough");
    wait_for("the rebuild", || {
        machine.metric("kos_shards_repaired_total") > 0 && machine.metric("kos_stripes_under_replicated") == 0
    });
    // Any two others may hang now.
    drop(hang);
    let first = machine.hang("shards/0");
    machine.has("file", 2);
    drop(first);
    machine.is_well();
    machine.has("file", 2);
}

#[test]
fn when_the_metadata_does_not_sync_changes_end_and_go_on_later() {
    let mut machine = Machine::start();
    machine.put("before", 1).expect("write");
    let mem = machine.daemon.mem();
    let mut open = File::options().write(true).open(mem.join("before")).expect("open");
    let hang = machine.power.hang_syncs("meta");
    // Not even its size changes, but an fsync has something to say.
    open.write_all(&Rng::new(1).bytes(5000)).expect("into memory");
    let open = within("fsync", move || (open.sync_all(), open));
    assert!(matches!(open.0.map_err(|e| e.raw_os_error()), Err(Some(libc::EIO | libc::ETIMEDOUT))));
    for number in 0..3 {
        let dir = mem.join(format!("dir{number}"));
        let refused = within("mkdir", move || fs::create_dir(dir)).expect_err("nobody knows").raw_os_error();
        assert!(matches!(refused, Some(libc::EIO | libc::ETIMEDOUT)), "{refused:?}");
    }
    assert!(hang.requests() > 0, "it hangs");
    let health = machine.control("health");
    assert!(health.contains("the metadata's disk does not answer"), "{health}");
    wait_for("the event", || machine.control("events").contains("meta: its disk"));
    let path = mem.join("before");
    assert_eq!(within("stat", move || fs::metadata(path)).expect("known").len(), LEN as u64);
    drop(hang);
    machine.is_well();
    // What was refused is there or not.
    for number in 0..3 {
        let dir = mem.join(format!("dir{number}"));
        let made = within("mkdir", move || fs::create_dir(dir)).map_err(|e| e.kind());
        assert!(matches!(made, Ok(()) | Err(io::ErrorKind::AlreadyExists)), "{made:?}");
    }
    let (told, open) = within("fsync", move || (open.1.sync_all(), open.1));
    println!("{told:?}");
    within("fsync", move || open.sync_all()).expect("told once at most");
    machine.put("after", 2).expect("write");
    let off = machine.power.cut_power();
    machine.daemon.kill();
    machine.power.restart(&off, Cut::Nothing, &mut Rng::new(seed()));
    machine.daemon.spawn();
    (1..).zip(["before", "after"]).for_each(|(seed, name)| machine.has(name, seed));
    machine.is_well();
    machine.daemon.stop();
}

/// The first change hangs in the append itself, on the thread that serves it.
#[test]
fn when_the_metadata_hangs_at_once_changes_end_and_go_on_later() {
    let mut machine = Machine::start();
    machine.put("before", 1).expect("write");
    let mem = machine.daemon.mem();
    fs::create_dir(mem.join("here")).expect("mkdir");
    let hang = machine.power.hang_dir("meta");
    let refused = |result: io::Result<()>| {
        let errno = result.expect_err("nobody knows").raw_os_error();
        assert!(matches!(errno, Some(libc::EIO | libc::ETIMEDOUT)), "{errno:?}");
    };
    // Beside it, and behind it in its directory; more than there are threads to serve them.
    let others: Vec<_> = (0..12)
        .map(|number| {
            let parent = if number % 2 == 0 { mem.clone() } else { mem.join("here") };
            thread::spawn(move || {
                within("mkdir", move || fs::create_dir(parent.join(format!("dir{number}"))))
            })
        })
        .collect();
    wait_for("a request that hangs", || hang.requests() > 0);
    wait_for("health", || machine.control("health").contains("the metadata's disk does not answer"));
    wait_for("kos status", || machine.status() == Some(4));
    machine.has("before", 1);
    let path = mem.join("before");
    refused(within("chmod", move || fs::set_permissions(path, Permissions::from_mode(0o600))));
    others.into_iter().for_each(|other| refused(other.join().expect("no panic")));
    drop(hang);
    machine.is_well();
    for number in 0..12 {
        let parent = if number % 2 == 0 { mem.clone() } else { mem.join("here") };
        let made = within("mkdir", move || fs::create_dir(parent.join(format!("dir{number}"))));
        let made = made.map_err(|e| e.kind());
        assert!(matches!(made, Ok(()) | Err(io::ErrorKind::AlreadyExists)), "{made:?}");
    }
    machine.put("after", 2).expect("write");
    for _ in 0..2 {
        (1..).zip(["before", "after"]).for_each(|(seed, name)| machine.has(name, seed));
        machine.daemon.stop();
        machine.daemon.spawn();
    }
}

#[test]
fn a_place_that_hangs_at_the_start_counts_as_lost_until_the_next() {
    let mut machine = Machine::start();
    machine.put("file", 1).expect("write");
    machine.daemon.stop();
    let hang = machine.hang("shards/2");
    machine.daemon.spawn();
    machine.has("file", 1);
    machine.put("meanwhile", 2).expect("write");
    let health = machine.control("health");
    assert!(health.starts_with("degraded: 1 state directories take no writes"), "{health}");
    assert!(machine.control("events").contains("its disk has not answered at the start"));
    drop(hang);
    machine.daemon.stop();
    machine.daemon.spawn();
    machine.is_well();
    (1..).zip(["file", "meanwhile"]).for_each(|(seed, name)| machine.has(name, seed));
}

#[test]
fn kos_up_says_that_the_metadata_hangs_and_kos_down_ends_beside_a_place_that_does() {
    let mut machine = Machine::start();
    machine.put("file", 1).expect("write");
    machine.daemon.stop();
    let hang = machine.hang("meta");
    let mount = machine.daemon.mount();
    let up = [OsStr::new("--tier-ram"), OsStr::new("0"), OsStr::new("--mount"), mount.as_os_str()];
    let (code, said) = machine.kos("up", &up);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the start waits for the metadata in"), "{said}");
    drop(hang);
    let (code, said) = machine.kos("up", &up);
    assert_eq!(code, Some(0), "{said}");
    machine.has("file", 1);
    let hang = machine.hang("shards/1");
    machine.has("file", 1);
    let (code, said) = machine.kos("down", &[]);
    // The process is gone when its last thread is, which waits for the disk.
    assert!(
        code == Some(0) && said.contains("stopped") || code == Some(1) && said.contains("goes on"),
        "{said}"
    );
    drop(hang);
    wait_for("the end", || machine.kos("down", &[]).0 == Some(3));
    machine.daemon.spawn();
    machine.has("file", 1);
    machine.is_well();
}

#[test]
fn what_a_silent_place_held_is_rebuilt_after_a_minute() {
    let machine = Machine::start();
    machine.put("file", 1).expect("write");
    let hang = machine.hang("shards/3");
    machine.has("file", 1);
    let begun = Instant::now();
    while machine.metric("kos_shards_repaired_total") == 0
        || machine.metric("kos_stripes_under_replicated") > 0
    {
        assert!(begun.elapsed() < DEADLINE, "{}", machine.control("events"));
        thread::sleep(Duration::from_millis(500));
    }
    // So one more may hang, which has two shards of some stripes.
    let more = machine.hang("shards/0");
    machine.has("file", 1);
    drop((more, hang));
    machine.is_well();
    machine.has("file", 1);
    // Each shard is on a place of its own again.
    let hang = [machine.hang("shards/1"), machine.hang("shards/2")];
    machine.has("file", 1);
    drop(hang);
}

#[test]
fn when_all_places_hang_requests_end_and_go_on_later() {
    let machine = Machine::start();
    machine.put("before", 1).expect("write");
    let hang = machine.hang("shards");
    for name in ["before", "meanwhile"] {
        let error = if name == "before" { machine.get(name).err() } else { machine.put(name, 2).err() };
        assert!(matches!(error.and_then(|e| e.raw_os_error()), Some(libc::EIO | libc::ETIMEDOUT)), "{name}");
    }
    wait_for("health", || machine.control("health").contains("6 state directories do not answer"));
    // Names are the metadata's.
    let (old, new) = (machine.daemon.mem().join("before"), machine.daemon.mem().join("renamed"));
    within("rename", move || fs::rename(old, new)).expect("rename");
    drop(hang);
    machine.is_well();
    machine.has("renamed", 1);
    // What was written is still in memory, and flushed by itself.
    machine.has("meanwhile", 2);
    machine.put("meanwhile", 3).expect("write");
    machine.has("meanwhile", 3);
    assert_eq!(machine.metric("kos_stripes_lost_total"), 0);
}
