//! Leases, simulated from a seed: mounts that stop, connections that break, leaders that change.

mod locks;
mod log;
mod mount;
mod programs;
mod rules;
mod world;

use world::{Bug, Stats, World};

use crate::rng::for_seeds;

/// Seeds of `make test`; KOS_SEEDS asks for more.
const SEEDS: u64 = 2000;
/// Side by side, so that thousands take seconds.
const THREADS: u64 = 4;

#[test]
fn no_seed_breaks_coherence_or_hangs() {
    let seeds = std::env::var("KOS_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let part = |thread| {
        let mut sum = Stats::default();
        for_seeds(seeds, |seed| {
            if seed % THREADS == thread {
                let stats = World::run(seed, None).unwrap_or_else(|wrong| panic!("{wrong}"));
                sum.add(&stats);
            }
        });
        sum
    };
    let mut sum = Stats::default();
    std::thread::scope(|scope| {
        let part = &part;
        let parts: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || part(thread))).collect();
        for done in parts {
            sum.add(&done.join().expect("a seed failed: see above"));
        }
    });
    println!("{sum:?}");
    // The run has seen what it is about.
    if std::env::var_os("KOS_SEED").is_none() {
        assert!(sum.recalls > 1000 && sum.fences > 100 && sum.lost > 10 && sum.trees > 100, "{sum:?}");
        assert!(sum.upgrades > 1000 && sum.refused > 10, "{sum:?}");
        assert!(sum.yielded > 100 && sum.admitted > 100, "{sum:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        assert_eq!(World::run(seed, None), World::run(seed, None), "{seed}");
    }
}

#[test]
fn planted_mistakes_are_found() {
    let bugs = [
        Bug::FenceNotLogged,
        Bug::LateCommits,
        Bug::NoMargin,
        Bug::CountedFromArrival,
        Bug::NotFlushed,
        Bug::NotInvalidated,
        Bug::NoGrace,
        Bug::NoReadIndex,
        Bug::UpgradeHolds,
        Bug::NeverAcknowledged,
        Bug::NeverYields,
    ];
    for bug in bugs {
        let found = (0..300).find_map(|seed| World::run(seed, Some(bug)).err().map(|wrong| (seed, wrong)));
        assert!(found.is_some(), "{bug:?} was not found");
        println!("{bug:?}: {found:?}");
    }
}
