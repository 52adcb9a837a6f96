//! Failpoints at every step of the commit path: an error there loses nothing and is told to whom it
//! concerns, an abort there is a crash like any other.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kos_store::fault;
use kos_tests::power::Cut;
use kos_tests::{Rng, faulty_daemon, seed, wait_for};
use rustix::fs::XattrFlags;

use crate::load::{Kind, Worker};
use crate::{DISK_BYTES, Machine, walk, workers};

const KINDS: [Kind; 4] = [Kind::Overwrite, Kind::Append, Kind::Replace, Kind::Names];
/// Longer than the kernel shows a name without asking.
const NAMES_KEPT: Duration = Duration::from_millis(1500);
/// Daemons that run side by side.
const AT_ONCE: usize = 3;
/// What is passed in the middle of a load, and how often it has been before at least.
const UNDER_LOAD: [(&str, u64); 8] = [
    (fault::APPEND, 1),
    (fault::PLACE_SYNC, 1),
    (fault::SETTLED, 1),
    // Making the programs' directories passes these.
    (fault::TABLES_WRITE, 30),
    (fault::TABLES_WRITTEN, 30),
    (fault::LOG_SYNC, 30),
    (fault::COLLECTED, 1),
    (fault::FREE, 1),
];

/// A machine, not started, whose daemon will fail as `KOS_FAULTS` says.
pub(crate) fn faulty(faults: &str, ram_bytes: u64) -> Machine {
    println!("KOS_FAULTS={faults}");
    let mut machine = Machine::unstarted(ram_bytes);
    machine.daemon.program = faulty_daemon();
    machine.daemon.env = vec![("KOS_FAULTS".into(), faults.into())];
    machine
}

fn has_come(machine: &Machine) -> bool {
    machine.daemon.log().contains("fault: ")
}

/// Run the programs until the fault has come; answers what each was told.
fn run(machine: &mut Machine, workers: &mut [Worker]) -> Vec<Option<io::Error>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(|| worker.run(&stop))).collect();
        wait_for("the fault", || has_come(machine));
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::SeqCst);
        if machine.daemon.has_ended() {
            // Whoever waits for an answer gets an error.
            machine.daemon.kill();
        }
        running.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    })
}

/// Do it for every point, some at once.
fn each_point(check: impl Fn(&'static str, u64, Rng) + Sync) {
    let mut rng = Rng::new(seed());
    let mut points = Vec::new();
    for (point, least) in UNDER_LOAD {
        points.push((point, least + rng.below(if point == fault::COLLECTED { 1 } else { 20 }), rng.next()));
    }
    for some in points.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for &(point, pass, seed) in some {
                let check = &check;
                scope.spawn(move || check(point, pass, Rng::new(seed)));
            }
        });
    }
}

#[test]
fn an_abort_at_any_point_is_a_crash_like_any_other() {
    each_point(|point, pass, mut rng| {
        let mut machine = faulty(&format!("{point}=abort@{pass}"), 0);
        machine.daemon.spawn();
        let mut workers = workers(&machine, &KINDS, &mut rng);
        run(&mut machine, &mut workers);
        let off = machine.power_off();
        machine.daemon.env.clear();
        let cut = Cut::choose(&mut rng);
        machine.power_on(&off, cut, &mut rng).expect("the node is back");
        for worker in &mut workers {
            worker.check().unwrap_or_else(|e| panic!("{point}, {cut:?}: {e}"));
        }
        walk(&machine.daemon.mem()).expect("consistent");
        machine.audit();
    });
}

#[test]
fn an_error_at_any_point_is_told_and_loses_nothing() {
    each_point(|point, pass, mut rng| {
        let mut machine = faulty(&format!("{point}=io@{pass}"), 0);
        machine.daemon.spawn();
        let mut workers = workers(&machine, &KINDS, &mut rng);
        let told = run(&mut machine, &mut workers);
        println!("{point}: {told:?}");
        assert!(told.iter().flatten().all(|e| e.raw_os_error() == Some(libc::EIO)), "{point}: {told:?}");
        let told = told.iter().flatten().count();
        if point == fault::TABLES_WRITTEN {
            // The kernel believes the error and shows the name as it was, for as long as it may.
            std::thread::sleep(NAMES_KEPT);
        }
        match point {
            // Another place takes the shard; dead stripes are nobody's.
            fault::APPEND | fault::COLLECTED | fault::FREE => assert_eq!(told, 0, "{point}"),
            fault::PLACE_SYNC | fault::SETTLED | fault::LOG_SYNC => assert!(told > 0, "{point}"),
            // May be the collector's.
            _ => assert!(told <= 1, "{point}"),
        }
        for worker in &mut workers {
            worker.check_now().unwrap_or_else(|e| panic!("{point}: {e}"));
            let settled = worker.settle();
            if point == fault::LOG_SYNC {
                let error = settled.expect_err("what is on stable storage is unknown until a restart");
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                let health = fs::read_to_string(machine.daemon.mount().join("sys/health")).expect("health");
                assert!(health.contains("degraded") && health.contains("restart"), "{health}");
            } else {
                settled.unwrap_or_else(|e| panic!("{point}: the second try: {e}"));
            }
        }
        let off = machine.power_off();
        machine.daemon.env.clear();
        machine.power_on(&off, Cut::Nothing, &mut rng).expect("the node is back");
        for worker in &mut workers {
            worker.check().unwrap_or_else(|e| panic!("{point}, after a cut: {e}"));
        }
        walk(&machine.daemon.mem()).expect("consistent");
        machine.audit();
    });
}

#[test]
fn a_start_that_fails_is_repeated() {
    for fault in
        ["batch=io@1", "batch=abort@1", "segment=abort@3", "tables-write=abort@1", "log-sync=abort@1"]
    {
        let mut machine = faulty(fault, 0);
        let error = machine.daemon.try_spawn().expect_err("fails");
        assert!(error.contains("fault: "), "{error}");
        let off = machine.power_off();
        machine.daemon.env.clear();
        machine.power_on(&off, Cut::Pieces, &mut Rng::new(seed())).expect("starts");
        fs::write(machine.daemon.mem().join("file"), b"x").expect("works");
        machine.daemon.stop();
    }
}

#[test]
fn a_place_without_a_segment_is_tried_again() {
    let mut machine = faulty("segment=io@3", 0);
    machine.daemon.spawn();
    assert!(has_come(&machine));
    fs::write(machine.daemon.mem().join("file"), vec![1; 1 << 20]).expect("works");
    File::open(machine.daemon.mem()).and_then(|root| root.sync_all()).expect("fsync");
    machine.daemon.stop();
}

#[test]
fn memory_that_did_not_move_to_disk_is_still_there() {
    for fault in ["move=io@1", "move=abort@1"] {
        let mut machine = faulty(fault, 64 << 20);
        machine.daemon.spawn();
        let dir = machine.daemon.mem().join("memory");
        fs::create_dir(&dir).expect("mkdir");
        rustix::fs::setxattr(&dir, "user.kos.durability", b"memory", XattrFlags::empty()).expect("setxattr");
        let data = Rng::new(1).bytes(3 << 20);
        fs::write(dir.join("file"), &data).expect("write");
        assert!(!machine.daemon.try_stop().success(), "{fault}");
        machine.daemon.env.clear();
        machine.daemon.spawn();
        assert!(fs::read(dir.join("file")).expect("read") == data, "{fault}");
        machine.daemon.stop();
        machine.daemon.spawn();
        assert!(fs::read(dir.join("file")).expect("read") == data, "{fault}: moved at the second end");
        machine.daemon.stop();
    }
}

/// Damage the first place of a stopped node.
fn corrupt(machine: &Machine) {
    for entry in fs::read_dir(machine.daemon.state().join("shards/0")).expect("place") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "kos") {
            let len = fs::metadata(&path).expect("segment").len() as usize;
            let file = File::options().write(true).open(&path).expect("segment");
            file.write_all_at(&vec![0xaa; len], 0).and_then(|()| file.sync_all()).expect("damage");
        }
    }
}

#[test]
fn a_repair_whose_end_is_unknown_loses_no_shard() {
    let mut machine = Machine::start(0);
    let data = Rng::new(1).bytes(3 << 20);
    fs::write(machine.daemon.mem().join("file"), &data).expect("write");
    machine.daemon.stop();
    corrupt(&machine);
    machine.daemon.program = faulty_daemon();
    // All writes fail but those of the start, however many these are.
    let starts = (1..30).any(|pass| {
        let faults = format!("{}=io@{pass}x1000000", fault::TABLES_WRITTEN);
        machine.daemon.env = vec![("KOS_FAULTS".into(), faults)];
        let started = machine.daemon.try_spawn().is_ok();
        if !started {
            machine.daemon.kill();
        }
        started
    });
    assert!(starts);
    let said = machine.daemon.log().len();
    assert!(fs::read(machine.daemon.mem().join("file")).expect("decoded") == data);
    wait_for("the repair", || machine.daemon.log()[said..].contains("metadata: written"));
    machine.daemon.kill();
    machine.daemon.env.clear();
    machine.daemon.spawn();
    assert!(fs::read(machine.daemon.mem().join("file")).expect("read") == data);
    let metrics = fs::read_to_string(machine.daemon.mount().join("sys/metrics")).expect("metrics");
    assert!(metrics.contains("kos_shards_bad_total 0\n"), "the repair holds: {metrics}");
    machine.audit();
}

#[test]
fn a_full_disk_is_told_and_tried_again() {
    // A stripe tries each of the six places.
    let mut machine = faulty("append=nospace@1x12", 0);
    machine.daemon.spawn();
    let path = machine.daemon.mem().join("file");
    let mut file = File::create(&path).expect("create");
    let data = Rng::new(1).bytes(100_000);
    file.write_all(&data).expect("write");
    for _ in 0..2 {
        assert_eq!(file.sync_all().expect_err("full").raw_os_error(), Some(libc::ENOSPC));
        assert!(fs::read(&path).expect("read") == data, "the bytes are kept");
    }
    file.sync_all().expect("there is space again");
    let off = machine.power_off();
    machine.power_on(&off, Cut::Nothing, &mut Rng::new(1)).expect("starts");
    assert!(fs::read(&path).expect("read") == data);
    machine.daemon.stop();
}

#[test]
fn a_disk_that_others_filled_loses_nothing_and_works_once_it_has_room() {
    let mut machine = Machine::start(0);
    let kept = machine.daemon.mem().join("kept");
    let new = machine.daemon.mem().join("new");
    let fsync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    fs::write(&kept, [7; 100_000]).and_then(|()| fsync(&kept)).expect("there is room");
    machine.power.set_capacity(machine.power.bytes_used());
    let full = File::create(&new).expect_err("the metadata's log has no room");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    for _ in 0..3 {
        assert_eq!(fsync(&kept).expect_err("not stable").raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(File::create(&new).expect_err("full").raw_os_error(), Some(libc::ENOSPC));
    }
    assert!(fs::read(&kept).expect("read") == [7; 100_000]);
    machine.power.set_capacity(DISK_BYTES);
    wait_for("the metadata", || File::create(&new).is_ok());
    fs::write(&new, b"x").and_then(|()| fsync(&new)).expect("works again, and is stable");
    machine.is(0).expect("ok");
    let off = machine.power_off();
    machine.power_on(&off, Cut::Nothing, &mut Rng::new(1)).expect("starts");
    assert!(fs::read(&kept).expect("read") == [7; 100_000]);
    assert_eq!(fs::read(&new).expect("read"), b"x");
    machine.audit();
}
