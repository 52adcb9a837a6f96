//! Nothing leaks: after load, kills, cuts and collection the state holds what the live files need,
//! and when they are gone what an empty one needs.

use std::fs::{self, File};
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kos_tests::power::Cut;
use kos_tests::{Rng, seed};

use crate::audit::Audit;
use crate::faults::faulty;
use crate::load::{KINDS, Worker};
use crate::{Machine, workers};

fn remove_files(dir: &Path) {
    for entry in fs::read_dir(dir).expect("directory") {
        fs::remove_file(entry.expect("entry").path()).expect("remove");
    }
}

fn load(machine: &mut Machine, workers: &mut [Worker], rng: &mut Rng, end: impl FnOnce(&mut Machine)) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in workers {
            scope.spawn(|| worker.run(&stop));
        }
        std::thread::sleep(Duration::from_millis(200 + rng.below(500)));
        end(machine);
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn nothing_leaks_over_kills_and_cuts() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::start(0);
    let mut workers = workers(&machine, &KINDS, &mut rng);
    let empty = machine.audit();
    assert_eq!(empty.bytes, 0);
    machine.daemon.spawn();
    for _ in 0..2 {
        load(&mut machine, &mut workers, &mut rng, |machine| machine.daemon.kill());
        machine.daemon.spawn();
        workers.iter_mut().try_for_each(Worker::check).expect("kept over a kill");
        let mut off = None;
        load(&mut machine, &mut workers, &mut rng, |machine| off = Some(machine.power_off()));
        let cut = Cut::choose(&mut rng);
        machine.power_on(&off.expect("was on"), cut, &mut rng).expect("the node is back");
        workers.iter_mut().try_for_each(Worker::check).expect("kept over a cut");
    }
    let full = machine.audit();
    println!("{full:?}");
    assert!(full.bytes > 0 && full.records[&'S'] > 0);
    assert!(!full.records.contains_key(&'G'), "all garbage is collected: {full:?}");

    machine.daemon.spawn();
    for worker in &workers {
        remove_files(worker.dir());
    }
    machine.daemon.stop();
    // A start reaps what was unlinked while the kernel still knew it.
    machine.daemon.spawn();
    let after = machine.audit();
    assert_eq!((after.bytes, &after.records), (0, &empty.records));
}

#[test]
fn what_could_not_be_freed_is_seen_and_comes_back_at_the_next_start() {
    let mut machine = faulty("free=io@1x1000000", 0);
    machine.daemon.spawn();
    let file = machine.daemon.mem().join("file");
    for byte in 1..4 {
        fs::write(&file, vec![byte; 1 << 20]).expect("write");
        File::open(&file).and_then(|file| file.sync_all()).expect("fsync");
    }
    machine.collect();
    machine.daemon.stop();
    let state = machine.daemon.state();
    catch_unwind(|| Audit::of(&state)).expect_err("the audit sees a leak");
    machine.daemon.env.clear();
    machine.daemon.spawn();
    assert!(machine.audit().bytes > 0);
}
