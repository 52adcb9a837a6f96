//! Leases with a clock and threads: [`Keeper`] runs the leader's table, [`Holder`] a mount's half. They
//! know nothing of sockets, FUSE or tables: messages come and go through closures.

mod holder;
mod keeper;
mod resident;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use holder::{Holder, Link, Opened};
pub use keeper::{Keeper, Log, Outbox};
pub use resident::reside;

/// Without anything to wait for, look at the time so often.
const IDLE: Duration = Duration::from_secs(1);

/// Microseconds of the clock that goes on while the machine sleeps: a lease must not outlive that.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    // Since the machine's start, so neither is negative.
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long to wait for a deadline.
fn rest(due: Option<u64>) -> Duration {
    due.map_or(IDLE, |due| Duration::from_micros(due.saturating_sub(now())).min(IDLE))
}
