//! Scrubbing: every shard is read whole and checked by its hash, again and again, so that damage is
//! found while the other shards can still make up for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kos_core::{Tables, keys, record};
use kos_types::{Result, StripeId};

use crate::node::{Inner, now};
use crate::worker::{Stop, Worker};

/// Time between looks at whether a pass is due.
const PERIOD: Duration = Duration::from_millis(500);
/// A pass begins so long after the one before did.
const PASS_SECS: u64 = 7 * 24 * 3600;
/// Bytes read in a second: 19 TB in a week.
const BYTES_PER_SEC: u64 = 32 << 20;
/// The same in a pass that somebody asked for.
const BYTES_PER_SEC_ASKED: u64 = 256 << 20;
/// Stripes looked up at once, and checked between two notes of how far it is.
const STRIPES_MAX: usize = 64;
/// Where that is noted. The state machine's tables have capital letters.
const NOTE: &[u8] = b"p";

/// How far the last pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Pass {
    /// When it began, in seconds.
    began: u64,
    /// The next stripe; none when it is over.
    next: Option<StripeId>,
}

impl Pass {
    fn encode(self) -> Vec<u8> {
        // The last id is never given out.
        let next = self.next.map_or(u64::MAX, |id| id.0);
        [self.began, next].iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// What cannot be read is a pass that never was.
    fn decode(bytes: &[u8]) -> Self {
        let (fields, _) = bytes.as_chunks::<8>();
        let &[began, next] = fields else { return Self::default() };
        let next = u64::from_le_bytes(next);
        Self { began: u64::from_le_bytes(began), next: (next != u64::MAX).then_some(StripeId(next)) }
    }
}

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    let mut pass = match inner.db.get(NOTE)? {
        Some(bytes) => Pass::decode(&bytes),
        // Nothing is old enough to be read again.
        None => Pass { began: u64::try_from(now().secs).unwrap_or(0), next: None },
    };
    inner.db.write([(NOTE.to_vec(), Some(pass.encode()))])?;
    let mut asked = false;
    Worker::start("scrubber", move |stop| {
        while stop.sleep(PERIOD) {
            let now = u64::try_from(now().secs).unwrap_or(0);
            let asked_now = inner.scrub.swap(false, Ordering::Relaxed);
            if asked_now || (pass.next.is_none() && now.saturating_sub(pass.began) >= PASS_SECS) {
                pass = Pass { began: now, next: Some(StripeId(0)) };
                asked = asked_now;
            }
            if let Err(e) = run(&inner, stop, &mut pass, asked) {
                kos_types::log!("fabricd: scrub: {e}; it goes on in {PERIOD:?}");
            }
        }
    })
}

/// Go on with a pass until it is over, or the worker is to end or somebody asks for another.
fn run(inner: &Inner, stop: &Stop, pass: &mut Pass, asked: bool) -> Result<()> {
    let found = inner.counters.scrub_bad.load(Ordering::Relaxed);
    let rate = if asked { BYTES_PER_SEC_ASKED } else { BYTES_PER_SEC };
    while let Some(next) = pass.next {
        let stripes = inner.db.scan(&keys::stripe(next), &keys::end_of(keys::STRIPES), STRIPES_MAX)?;
        for (key, value) in &stripes {
            let (id, geometry) =
                (StripeId(keys::field(key, 1)), record::Stripe::decode(value)?.policy.geometry);
            let start = Instant::now();
            let bytes = inner.stripes.scrub(id, geometry)?;
            let pause = Duration::from_secs_f64(bytes as f64 / rate as f64);
            if !stop.sleep(pause.saturating_sub(start.elapsed())) {
                return Ok(());
            }
            pass.next = Some(StripeId(id.0 + 1));
            if inner.scrub.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        if stripes.is_empty() {
            pass.next = None;
            inner.counters.scrub_passes.fetch_add(1, Ordering::Relaxed);
            let found = inner.counters.scrub_bad.load(Ordering::Relaxed) - found;
            inner.events.add("scrubbed", &format!("all shards are read; {found} of them were damaged"));
        }
        inner.db.write([(NOTE.to_vec(), Some(pass.encode()))])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_round_trip_and_damage_begins_anew() {
        for next in [None, Some(StripeId(0)), Some(StripeId(0x0001_0000_0007))] {
            let pass = Pass { began: 1_700_000_000, next };
            assert_eq!(Pass::decode(&pass.encode()), pass);
        }
        for bytes in [&b""[..], b"short", &[7; 24]] {
            assert_eq!(Pass::decode(bytes), Pass::default());
        }
    }
}
