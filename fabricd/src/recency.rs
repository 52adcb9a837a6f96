//! Which stripes are in memory and when each was last used, and which are to come back there.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kos_types::StripeId;

/// Stripes that were read from disk and are to come back: more are not noted.
const HOT_MAX: usize = 4096;

#[derive(Default)]
struct State {
    /// What is in memory and may leave it, with the tick of its last use.
    used: HashMap<StripeId, u64>,
    tick: u64,
    /// What is pinned and on disk.
    pinned: BTreeSet<StripeId>,
    /// What is not pinned, is on disk and was read there.
    hot: BTreeSet<StripeId>,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }
}

/// About 40 bytes for each stripe in memory. A stripe of the default geometry takes at least 48 KiB
/// there, so that this is bounded by the budget: less than a thousandth of it.
#[derive(Default)]
pub(crate) struct Recency(Mutex<State>);

impl Recency {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stripe is in memory now.
    pub(crate) fn insert(&self, id: StripeId) {
        let mut state = self.state();
        let tick = state.tick();
        state.used.insert(id, tick);
    }

    /// It was read, in memory or on disk.
    pub(crate) fn used(&self, id: StripeId) {
        let mut state = self.state();
        let tick = state.tick();
        if let Some(last) = state.used.get_mut(&id) {
            *last = tick;
        } else if state.hot.len() < HOT_MAX {
            state.hot.insert(id);
        }
    }

    /// It is pinned, and not all of it is in memory.
    pub(crate) fn want(&self, id: StripeId) {
        self.state().pinned.insert(id);
    }

    /// It has left memory, or is gone altogether.
    pub(crate) fn remove(&self, id: StripeId) {
        let mut state = self.state();
        state.used.remove(&id);
        state.pinned.remove(&id);
        state.hot.remove(&id);
    }

    /// At most `max` stripes, those first that were not used for longest.
    pub(crate) fn oldest(&self, max: usize) -> Vec<StripeId> {
        let mut all: Vec<(u64, StripeId)> = self.state().used.iter().map(|(&id, &tick)| (tick, id)).collect();
        if all.len() > max {
            all.select_nth_unstable(max);
            all.truncate(max);
        }
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Take out at most `max` stripes that are to come back, pinned ones first.
    pub(crate) fn take_wanted(&self, max: usize) -> Vec<StripeId> {
        let mut state = self.state();
        let take = |state: &mut State| state.pinned.pop_first().or_else(|| state.hot.pop_first());
        std::iter::from_fn(|| take(&mut state)).take(max).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_is_first() {
        let recency = Recency::default();
        for id in 1..=5 {
            recency.insert(StripeId(id));
        }
        recency.used(StripeId(1));
        recency.used(StripeId(3));
        assert_eq!(recency.oldest(3), [2, 4, 5].map(StripeId));
        recency.remove(StripeId(4));
        assert_eq!(recency.oldest(9), [2, 5, 1, 3].map(StripeId));
    }

    #[test]
    fn what_is_read_on_disk_comes_back_after_what_is_pinned() {
        let recency = Recency::default();
        for id in 1..=HOT_MAX as u64 + 10 {
            recency.used(StripeId(id));
        }
        recency.want(StripeId(u64::MAX));
        assert_eq!(recency.take_wanted(2), [StripeId(u64::MAX), StripeId(1)]);
        assert_eq!(recency.take_wanted(usize::MAX).len(), HOT_MAX - 1, "bounded");
        assert!(recency.oldest(9).is_empty());
    }
}
