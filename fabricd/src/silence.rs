//! Disks that do not answer: told, and what they hold is rebuilt on the others when it takes long
//! (docs/adr/0082).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kos_core::{Tables, keys};
use kos_store::PlaceStatus;
use kos_types::{Result, StripeId, patience};

use crate::node::Inner;
use crate::worker::{Stop, Worker};

/// Time between looks.
const PERIOD: Duration = Duration::from_millis(500);
/// A place that is silent for longer counts as lost: a controller that resets, or a path that changes, takes less.
const GRACE: Duration = Duration::from_mins(1);
/// Stripes looked up at once.
const STRIPES_MAX: usize = 256;

/// What was said and done about a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    silences: u64,
    silent: bool,
    /// Its stripes are listed.
    lost: bool,
}

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    Worker::start("listener", move |stop| {
        let mut all = vec![Seen::default(); inner.stripes.tiers().statuses().len()];
        let mut metadata = Seen::default();
        while stop.sleep(PERIOD) {
            let what = "Changes and fsync fail until it has answered";
            // A commit that nobody waited for any more has brought stripes that are not judged.
            let answered = look(&inner, &mut metadata, &inner.db.status(), what);
            let statuses = inner.stripes.tiers().statuses();
            let what = "Reads go around it and shards go elsewhere; it is used again when it has answered";
            let judge = all.iter_mut().zip(&statuses).map(|(seen, status)| look(&inner, seen, status, what));
            let back = judge.fold(answered, |any, back| any | back);
            let lost = take_lost(&mut all, &statuses, Instant::now());
            if (back || lost)
                && let Err(e) = judge_all(&inner, stop)
            {
                kos_types::log!("fabricd: stripes of silent places are not all listed: {e}");
            }
        }
    })
}

/// Tell what is new of a disk, and what follows from its silence; answers whether it is back.
fn look(inner: &Inner, seen: &mut Seen, status: &PlaceStatus, what: &str) -> bool {
    let dir = status.dir.display();
    let new = status.silences - seen.silences;
    seen.silences = status.silences;
    if new > 0 {
        inner.counters.place_silences.fetch_add(new, Ordering::Relaxed);
    }
    if new > 0 && !seen.silent {
        let all = format!("{dir}: its disk does not answer. {what}. Look at the disk (dmesg)");
        inner.events.add("silent", &all);
    }
    let silent = status.silent_since.is_some();
    let back = (seen.silent || new > 0) && !silent;
    seen.silent = silent;
    if back {
        seen.lost = false;
        inner.events.add("answers", &format!("{dir}: its disk has answered and is used again"));
    }
    back
}

/// Whether a place now counts as lost. None does while most are silent: that is no lost disk but what all are on,
/// and there is nowhere to rebuild what they hold.
fn take_lost(all: &mut [Seen], statuses: &[PlaceStatus], now: Instant) -> bool {
    let since = |status: &PlaceStatus| status.silent_since.map(|since| now.saturating_duration_since(since));
    if 2 * statuses.iter().filter_map(since).count() > statuses.len() {
        return false;
    }
    let mut any = false;
    for (seen, status) in all.iter_mut().zip(statuses) {
        if !seen.lost && since(status).is_some_and(|silent| silent >= patience(GRACE)) {
            seen.lost = true;
            any = true;
        }
    }
    any
}

/// Judge every stripe anew: as at a start, but from the tables in pieces, while others work.
fn judge_all(inner: &Inner, stop: &Stop) -> Result<()> {
    let mut next = StripeId(0);
    loop {
        let stripes = inner.db.scan(&keys::stripe(next), &keys::end_of(keys::STRIPES), STRIPES_MAX)?;
        for (key, _) in &stripes {
            let id = StripeId(keys::field(key, 1));
            inner.stripes.rejudge(id, |damaged| damaged)?;
            next = StripeId(id.0 + 1);
        }
        if stripes.is_empty() || !stop.sleep(Duration::ZERO) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_lost_once_and_not_while_most_are_silent() {
        let now = Instant::now() + 2 * GRACE;
        let status = |silent: Option<Duration>| PlaceStatus {
            dir: "a".into(),
            failed: None,
            silent_since: silent.map(|silent| now - silent),
            silences: 1,
        };
        let lost = |silent: &[Option<Duration>], all: &mut [Seen]| {
            let statuses: Vec<_> = silent.iter().copied().map(status).collect();
            take_lost(all, &statuses, now)
        };
        let all = &mut [Seen::default(); 3];
        assert!(!lost(&[None, Some(GRACE / 2), None], all), "it may only be a reset");
        assert!(!lost(&[Some(GRACE), Some(GRACE), None], all), "most of them");
        assert!(lost(&[None, Some(GRACE), None], all));
        assert!(!lost(&[None, Some(2 * GRACE), None], all), "listed already");
        assert_eq!(all.map(|seen| seen.lost), [false, true, false]);
    }
}
