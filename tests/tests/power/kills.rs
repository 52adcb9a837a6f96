//! The same programs while the daemon is killed: kill -9 loses less than a power cut, but the mount and the launcher of
//! jobs live on for a moment.

use std::thread;
use std::time::Duration;

use kos_tests::{Daemon, Rng, seed};

use crate::chores::{Jobs, Snapshots};
use crate::load::{Kind, Worker};
use crate::{ON, walk};

/// Kills in one run; the soak asks for more.
fn kills() -> u64 {
    std::env::var("KOS_KILLS").map_or(5, |n| n.parse().expect("KOS_KILLS: a number"))
}

#[test]
fn snapshots_jobs_and_attributes_survive_kills() {
    let mut rng = Rng::new(seed());
    let mut daemon = Daemon::start();
    let kinds = [Kind::Overwrite, Kind::Replace, Kind::Names, Kind::Attributes];
    let workers = kinds.iter().map(|&kind| Worker::new(kind, &daemon.mem(), &mut rng));
    let mut workers: Vec<_> = workers.collect::<Result<_, _>>().expect("directories");
    let mut snapshots = Snapshots::new(&daemon.mount(), &mut rng);
    let mut jobs = Jobs::new(&daemon.mount()).expect("mkdir");
    for number in 0..kills() {
        thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| worker.run(&ON));
            }
            // Each ends with the error that the daemon's end is.
            scope.spawn(|| snapshots.run());
            scope.spawn(|| jobs.run());
            thread::sleep(Duration::from_millis(200 + rng.below(1000)));
            daemon.kill();
        });
        daemon.spawn();
        let checked = workers
            .iter_mut()
            .try_for_each(Worker::check)
            .and_then(|()| snapshots.check())
            .and_then(|()| jobs.check())
            .and_then(|()| walk(&daemon.mem()));
        checked.unwrap_or_else(|e| panic!("kill {number}: {e}"));
    }
    println!("{} snapshots acked, {} jobs acked, {} done", snapshots.acks, jobs.acks, jobs.done);
    assert!(snapshots.acks > 0 && jobs.acks > 0 && jobs.done > 0, "each program got an answer");
    assert!(workers.iter().all(|worker| worker.acks() > 0), "every program got an answer");
    daemon.stop();
}
