//! Tests kill a thread between two changes of its arena: from there on it changes nothing, whatever it still drops.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

thread_local! {
    /// Changes until the end; none while nothing ends.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// What a killed thread unwinds with.
struct Killed;

/// Called before each change: whether it is done.
pub(super) fn is_alive() -> bool {
    match LEFT.get() {
        None => true,
        Some(0) if std::thread::panicking() => false,
        Some(0) => panic::resume_unwind(Box::new(Killed)),
        Some(left) => {
            LEFT.set(Some(left - 1));
            true
        }
    }
}

/// From here on nothing changes: within [`after`].
pub(crate) fn now() {
    LEFT.set(Some(0));
}

/// Run `work`, which is killed after `changes` of them; what it owns is dropped and changes nothing then. Answers whether
/// it came to its end first.
pub(crate) fn after(changes: usize, work: impl FnOnce()) -> bool {
    LEFT.set(Some(changes));
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    match result {
        Ok(()) => true,
        Err(why) if why.is::<Killed>() => false,
        Err(why) => panic::resume_unwind(why),
    }
}
