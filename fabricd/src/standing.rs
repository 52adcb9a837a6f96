//! How stripes stand: which lack shards or have too many on one place. Decides, and keeps the
//! list of those that are not whole; it reads and writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kos_types::{Geometry, StripeId};

use crate::tiers::Spot;

/// How many places of each tier take shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) disk: usize,
    pub(crate) ram: usize,
}

impl Live {
    /// Shards of one stripe that a place may hold, so that losing one place loses as few as can be.
    pub(crate) fn limit(self, geometry: Geometry, ram: bool) -> usize {
        let places = if ram { self.ram } else { self.disk };
        // Where nothing takes shards there is nowhere to move one.
        geometry.n().checked_div(places).map_or(usize::MAX, |_| geometry.n().div_ceil(places))
    }
}

/// The state of a stripe that is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Defect {
    /// Shards that are missing or damaged.
    pub(crate) lacking: u8,
    /// Shards that may still be lost; below 0 the stripe is lost.
    pub(crate) spare: i8,
    /// A place holds more than its share.
    pub(crate) crowded: bool,
    /// Shards that reading showed to be damaged, as bits.
    pub(crate) damaged: u32,
}

impl Defect {
    /// What is to be done first: the next loss away from lost before the rest; what is lost last.
    fn urgency(&self) -> (bool, bool, i8) {
        (self.spare < 0, self.lacking == 0, self.spare)
    }
}

/// The state of a stripe with these good shards, each at its index; none when it is whole.
pub(crate) fn judge(geometry: Geometry, good: &[Option<Spot>], damaged: u32, live: Live) -> Option<Defect> {
    // A geometry holds at most 20 shards.
    let count = good.iter().flatten().count() as u8;
    let lacking = geometry.n() as u8 - count;
    let crowded = excess(geometry, good, live).is_some();
    let spare = count.cast_signed() - geometry.k() as i8;
    (lacking > 0 || crowded).then_some(Defect { lacking, spare, crowded, damaged })
}

/// A shard on the place that is furthest above its share.
pub(crate) fn excess(geometry: Geometry, good: &[Option<Spot>], live: Live) -> Option<u8> {
    let over = |spot: &Spot| held(good, spot.at()).checked_sub(live.limit(geometry, spot.ram));
    let all = (0..).zip(good).filter_map(|(index, spot)| Some((over(spot.as_ref()?)?, index)));
    all.filter(|(over, _)| *over > 0).max().map(|(_, index)| index)
}

/// Whether a place may take one more shard of the stripe.
pub(crate) fn has_room(geometry: Geometry, good: &[Option<Spot>], live: Live, at: (bool, usize)) -> bool {
    held(good, at) < live.limit(geometry, at.0)
}

fn held(good: &[Option<Spot>], at: (bool, usize)) -> usize {
    good.iter().flatten().filter(|spot| spot.at() == at).count()
}

/// How many stripes are not as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redundancy {
    /// Stripes with fewer good shards than their geometry says.
    pub under_replicated: u64,
    /// Of these, stripes with fewer good shards than reading them takes.
    pub lost: u64,
    /// Stripes with more shards on one place than an even spread puts there.
    pub under_spread: u64,
}

impl Redundancy {
    /// Nothing is lacking.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.under_replicated == 0 && self.under_spread == 0
    }
}

impl fmt::Display for Redundancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { under_replicated, lost, under_spread } = self;
        write!(
            f,
            "{under_replicated} stripes lack shards ({lost} of them lost), {under_spread} are unevenly spread"
        )
    }
}

#[derive(Default)]
struct State {
    defects: BTreeMap<StripeId, Defect>,
    /// What is to be put right, most urgent first.
    queue: BTreeSet<((bool, bool, i8), StripeId)>,
    /// What could not be put right lately.
    parked: BTreeSet<StripeId>,
    counts: Redundancy,
}

impl State {
    fn set(&mut self, id: StripeId, defect: Option<Defect>) {
        if let Some(old) = self.defects.remove(&id) {
            self.queue.remove(&(old.urgency(), id));
            self.parked.remove(&id);
            self.count(&old, |count, by| *count -= by);
        }
        if let Some(new) = defect {
            self.defects.insert(id, new);
            self.queue.insert((new.urgency(), id));
            self.count(&new, |count, by| *count += by);
        }
    }

    fn count(&mut self, defect: &Defect, change: impl Fn(&mut u64, u64)) {
        change(&mut self.counts.under_replicated, u64::from(defect.lacking > 0));
        change(&mut self.counts.lost, u64::from(defect.spare < 0));
        change(&mut self.counts.under_spread, u64::from(defect.crowded));
    }
}

/// The stripes that are not whole, about 100 bytes for each.
#[derive(Default)]
pub(crate) struct Standings(Mutex<State>);

impl Standings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> Redundancy {
        self.state().counts
    }

    /// Put a stripe's state down. `judge` is told which shards were known to be damaged, and runs
    /// under the lock, so that the last one to look is the last one to write.
    pub(crate) fn update<E>(
        &self,
        id: StripeId,
        judge: impl FnOnce(u32) -> Result<Option<Defect>, E>,
    ) -> Result<(), E> {
        let mut state = self.state();
        let damaged = state.defects.get(&id).map_or(0, |defect| defect.damaged);
        let defect = judge(damaged)?;
        state.set(id, defect);
        Ok(())
    }

    /// The stripe is gone.
    pub(crate) fn forget(&self, id: StripeId) {
        self.state().set(id, None);
    }

    /// The shards of a stripe that reading showed to be damaged.
    pub(crate) fn damaged(&self, id: StripeId) -> u32 {
        self.state().defects.get(&id).map_or(0, |defect| defect.damaged)
    }

    /// At most `max` stripes to put right, most urgent first.
    pub(crate) fn next(&self, max: usize) -> Vec<StripeId> {
        self.state().queue.iter().take(max).map(|&(_, id)| id).collect()
    }

    /// It could not be put right: leave it until [`Self::unpark`].
    pub(crate) fn park(&self, id: StripeId) {
        let mut state = self.state();
        if let Some(defect) = state.defects.get(&id).copied() {
            state.queue.remove(&(defect.urgency(), id));
            state.parked.insert(id);
        }
    }

    /// Try again what could not be put right.
    pub(crate) fn unpark(&self) {
        let mut state = self.state();
        for id in std::mem::take(&mut state.parked) {
            if let Some(defect) = state.defects.get(&id).copied() {
                state.queue.insert((defect.urgency(), id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kos_store::Location;

    use super::*;

    fn spots(places: &[Option<usize>]) -> Vec<Option<Spot>> {
        let location = Location { segment: 0, offset: 0, len: 4096 };
        places.iter().map(|place| place.map(|place| Spot { ram: false, place, location })).collect()
    }

    fn of(places: &[Option<usize>], disk: usize) -> Option<Defect> {
        judge(Geometry::DEFAULT, &spots(places), 0, Live { disk, ram: 0 })
    }

    #[test]
    fn a_stripe_is_whole_with_all_shards_evenly_spread() {
        let on = |places: [usize; 6]| places.map(Some);
        assert_eq!(of(&on([0, 1, 2, 3, 4, 5]), 6), None);
        assert_eq!(of(&on([0, 1, 2, 0, 1, 2]), 3), None);
        assert_eq!(of(&on([0, 2, 2, 0, 0, 2]), 2), None, "three each, while one of three is lost");
        assert_eq!(of(&on([0; 6]), 0), None, "nothing takes shards");
        let crowded = of(&on([0, 2, 2, 0, 0, 2]), 3).expect("the third is back");
        assert_eq!((crowded.lacking, crowded.spare, crowded.crowded), (0, 2, true));
        let lacking = of(&[Some(0), None, Some(2), Some(3), None, Some(5)], 6).expect("two are missing");
        assert_eq!((lacking.lacking, lacking.spare, lacking.crowded), (2, 0, false));
        assert_eq!(of(&[None; 6], 6).map(|defect| defect.spare), Some(-4));
    }

    #[test]
    fn moving_the_excess_ends_and_spreads_evenly() {
        for places in 1..=6 {
            let live = Live { disk: places, ram: 0 };
            let mut good = spots(&[Some(0); 6]);
            for _ in 0..6 {
                let Some(index) = excess(Geometry::DEFAULT, &good, live) else { break };
                let to = (0..places).find(|&p| has_room(Geometry::DEFAULT, &good, live, (false, p)));
                good[usize::from(index)].as_mut().expect("it has a place").place = to.expect("one has room");
            }
            assert_eq!(judge(Geometry::DEFAULT, &good, 0, live), None, "{places} places");
        }
    }

    #[test]
    fn the_most_endangered_is_first_and_counts_follow() {
        let standings = Standings::default();
        let set = |id: u64, defect| standings.update(StripeId(id), |_| Ok::<_, ()>(defect)).expect("judges");
        let defect = |lacking, spare| Some(Defect { lacking, spare, crowded: lacking == 0, damaged: 0 });
        for (id, state) in [(1, defect(0, 2)), (2, defect(1, 1)), (3, defect(3, -1)), (4, defect(2, 0))] {
            set(id, state);
        }
        let counts = standings.counts();
        assert_eq!((counts.under_replicated, counts.lost, counts.under_spread), (3, 1, 1));
        assert_eq!(standings.next(9), [4, 2, 1, 3].map(StripeId));
        standings.park(StripeId(4));
        assert_eq!(standings.next(1), [StripeId(2)]);
        assert_eq!(standings.counts(), counts, "what is parked still counts");
        standings.unpark();
        assert_eq!(standings.next(1), [StripeId(4)]);
        for id in 1..=4 {
            set(id, None);
            standings.forget(StripeId(id));
        }
        assert!(standings.counts().is_full() && standings.next(9).is_empty());
    }
}
