//! Requests that must not be done twice. A process that is killed may have done what it had not answered yet, and the
//! kernel sends that again to the next one: which names it made or removed is told by the fabric, which keeps its answer
//! with the change; where an append went is written down before it goes there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::Once;

use crate::arena::{Arena, Slot, Slots};

/// Set in the number of a request that is sent again.
pub(crate) const AGAIN: u64 = 1 << 63;

/// Words of a slot: the request's number, and one more than where an append goes.
const REQUEST: usize = 0;
const OFFSET: usize = 1;

/// Those of one mount that are being done.
#[derive(Debug)]
pub(crate) struct Table {
    slots: Slots<2>,
    mount: u64,
    /// What an earlier process was doing.
    left: Mutex<HashMap<u64, Slot>>,
    /// There was no slot, and that was told.
    full: AtomicBool,
}

/// One that is being done. Its slot is free again when the last clone is dropped: after the answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request(Option<Arc<Begun>>);

#[derive(Debug)]
struct Begun {
    all: Arc<Table>,
    slot: Slot,
    request: u64,
}

/// While it lives, its thread does a request.
#[derive(Debug)]
pub(crate) struct Doing;

thread_local! {
    static DOING: RefCell<Request> = const { RefCell::new(Request(None)) };
}

impl Table {
    pub(crate) fn new(arena: &Arc<Arena>) -> Self {
        let slots = arena.requests();
        let left = slots.taken().into_iter().map(|(slot, words)| (words[REQUEST], slot)).collect();
        Self { slots, mount: arena.nonce(), left: Mutex::new(left), full: AtomicBool::new(false) }
    }

    fn left(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    pub(crate) fn begin(self: &Arc<Self>, unique: u64) -> Request {
        let request = unique & !AGAIN;
        let left = if unique == request { None } else { self.left().remove(&request) };
        let slot = left.or_else(|| self.take(request));
        Request(slot.map(|slot| Arc::new(Begun { all: Arc::clone(self), slot, request })))
    }

    fn take(&self, request: u64) -> Option<Slot> {
        let words = [request, 0];
        let slot = self.slots.take(words).or_else(|| {
            // Answered, but for the last word of its process.
            self.left().drain().for_each(|(_, slot)| self.slots.put_back(slot));
            self.slots.take(words)
        });
        if slot.is_none() && !self.full.swap(true, Ordering::Relaxed) {
            kos_types::log!(
                "kos-fuse: too many requests at once: if this process is killed, some may be done twice"
            );
        }
        slot
    }
}

impl Request {
    /// This thread does it until the answer is dropped.
    pub(crate) fn doing(&self) -> Doing {
        DOING.set(self.clone());
        Doing
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        DOING.set(Request(None));
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.all.slots.put_back(self.slot);
    }
}

fn with<R>(look: impl FnOnce(&Begun) -> R) -> Option<R> {
    DOING.with_borrow(|doing| doing.0.as_deref().map(look))
}

/// The name of what this thread does.
pub(crate) fn name() -> Option<Once> {
    with(|begun| Once { slot: begun.slot.number(), mount: begun.all.mount, request: begun.request })
}

/// Where the append that this thread does goes: to `end`, unless that was decided before.
pub(crate) fn append_at(end: u64) -> u64 {
    let decide = |begun: &Begun| match begun.all.slots.get(begun.slot)[OFFSET] {
        0 => {
            begun.all.slots.set(begun.slot, OFFSET, end + 1);
            end
        }
        decided => decided - 1,
    };
    with(decide).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_again_is_known_by_the_next_process() {
        let arena = Arena::new().expect("arena");
        let first = Arc::new(Table::new(&arena));
        let (killed, done) = (first.begin(10), first.begin(12));
        let doing = killed.doing();
        let before = name().expect("a name");
        assert_eq!((append_at(100), append_at(200)), (100, 100));
        drop((doing, done));
        assert_eq!(name(), None);
        assert_eq!(append_at(300), 300);

        let next = Arc::new(Table::new(&arena));
        let other = next.begin(14);
        let again = next.begin(10 | AGAIN);
        {
            let _doing = again.doing();
            assert_eq!((name(), append_at(500)), (Some(before), 100));
        }
        let _doing = other.doing();
        assert_ne!(name().expect("a name").slot, before.slot);
        assert_eq!(append_at(500), 500);
        // Its own process is gone.
        std::mem::forget(killed);
    }

    #[test]
    fn the_last_words_of_processes_do_not_fill_the_table() {
        let arena = Arena::new().expect("arena");
        let first = Arc::new(Table::new(&arena));
        let all: Vec<_> =
            (1..).map(|unique| first.begin(unique)).take_while(|begun| begun.0.is_some()).collect();
        assert!(all.len() > 1000);
        let next = Arc::new(Table::new(&arena));
        assert!(next.begin(1 << 40).0.is_some());
        std::mem::forget(all);
    }
}
