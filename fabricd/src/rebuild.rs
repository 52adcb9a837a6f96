//! Rebuilding in the background: stripes get back what they lack, the most endangered first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kos_types::Result;

use crate::node::Inner;
use crate::standing::Redundancy;
use crate::worker::{Stop, Worker};

/// Time between looks at the list.
const PERIOD: Duration = Duration::from_millis(500);
/// What could not be rebuilt is tried again after so long: a disk may have room again.
const RETRY: Duration = Duration::from_secs(10);
/// Stripes put right between two syncs.
const STRIPES_MAX: usize = 64;
/// Bytes of shards read and written in a second: a disk is full again within hours, and programs
/// keep most of it.
const BYTES_PER_SEC: u64 = 128 << 20;

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    Worker::start("rebuilder", move |stop| {
        let mut tried = Instant::now();
        let mut said = Redundancy::default();
        while stop.sleep(PERIOD) {
            if tried.elapsed() >= RETRY {
                inner.stripes.standings.unpark();
                tried = Instant::now();
            }
            round(&inner, stop, &mut said);
        }
    })
}

/// Go through the list until what is left cannot be helped now.
fn round(inner: &Inner, stop: &Stop, said: &mut Redundancy) {
    let standings = &inner.stripes.standings;
    let mut failure = None;
    let mut begun = false;
    loop {
        let ids = standings.next(STRIPES_MAX);
        if ids.is_empty() {
            break;
        }
        if !begun && standings.counts() != *said {
            inner.events.add("rebuilding", &standings.counts().to_string());
        }
        begun = true;
        let start = Instant::now();
        let healed = inner.stripes.heal(&ids, || inner.sync());
        inner.counters.rebuild_bytes.fetch_add(healed.bytes, Ordering::Relaxed);
        inner.counters.rebuilds_failed.fetch_add(healed.failed.len() as u64, Ordering::Relaxed);
        failure = failure.or_else(|| healed.failed.into_iter().next());
        let wait = Duration::from_secs_f64(healed.bytes as f64 / BYTES_PER_SEC as f64);
        if !stop.sleep(wait.saturating_sub(start.elapsed())) {
            return;
        }
    }
    let now = standings.counts();
    if begun && now != *said {
        match failure {
            Some((id, e)) => {
                let what = format!("{now}; stripe {:#x}: {e}; tried again every {RETRY:?}", id.0);
                inner.events.add("unrepaired", &what);
            }
            None => inner.events.add("rebuilt", &now.to_string()),
        }
        *said = now;
    }
}
