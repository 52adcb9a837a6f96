//! The background work of a node: dead stripes are freed, stripes nobody commits are dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kos_core::read;
use kos_types::{Error, Kind, Op, Origin, Reply, Result};

use crate::node::{Inner, now};
use crate::worker::Worker;

/// Time between rounds. A dead stripe's bytes go in the next one: a read that still had it finds
/// it gone and asks for the extents again.
const PERIOD: Duration = Duration::from_secs(1);
/// Stripes freed in one command.
const STRIPES_MAX: usize = 1024;
/// Old records looked at in one command.
const RECORDS_MAX: u32 = 1024;

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    Worker::start("collector", move |stop| {
        while stop.sleep(PERIOD) {
            inner.stripes.expire();
            if let Err(e) = prune(&inner) {
                kos_types::log!("fabricd: dropping old versions: {e}; it goes on in {PERIOD:?}");
            }
            // A clock before 1970 collects nothing until it is set.
            let before = u64::try_from(now().secs).unwrap_or(0);
            if let Err(e) = collect(&inner, before) {
                kos_types::log!("fabricd: collecting garbage: {e}; it goes on in {PERIOD:?}");
            }
        }
    })
}

/// Old versions that no snapshot holds go, after one was dropped and after a start.
pub(crate) fn prune(inner: &Inner) -> Result<()> {
    // Whoever asks meanwhile waits for the end.
    let _one_at_a_time = inner.collecting.take(|| inner.db.check())?;
    if !inner.prune.swap(false, Ordering::Relaxed) {
        return Ok(());
    }
    let mut from = Vec::new();
    loop {
        match inner.propose(Op::Prune { from, max: RECORDS_MAX }) {
            Ok(Reply::Pruned(Some(next))) => from = next,
            Ok(Reply::Pruned(None)) => return Ok(()),
            Ok(other) => return Err(Error::new(Kind::Io, format!("prune: {other:?}"))),
            Err(e) => {
                inner.prune.store(true, Ordering::Relaxed);
                return Err(e);
            }
        }
    }
}

/// Free what died before that second.
pub(crate) fn collect(inner: &Inner, before: u64) -> Result<()> {
    let _one_at_a_time = inner.collecting.take(|| inner.db.check())?;
    loop {
        let dead = read::garbage(&*inner.db, before, STRIPES_MAX)?;
        if dead.is_empty() {
            return Ok(());
        }
        // A power cut must not bring back a commit whose stripes are gone: what killed them
        // is on stable storage before their bytes go.
        inner.sync()?;
        let stripes = dead.iter().map(|&(since, id, _)| (since, id)).collect();
        inner.stripes.collect(&dead, |index| {
            inner.propose_with(Origin::default(), Op::Collected { stripes }, index).map(drop)
        })?;
    }
}
