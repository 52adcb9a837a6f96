//! A lock of one holder at a time that is waited for only so long, as its holder may wait for a disk that hangs. It goes
//! with what it guards into the threads that ask the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kos_types::{Error, Kind, Result};
use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

/// More than any holder takes that the disk answers in the end.
const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks whether waiting is of use.
const LOOK: Duration = Duration::from_millis(500);

/// The lock.
#[derive(Debug, Default)]
pub(crate) struct Turn(Arc<Mutex<()>>);

/// Whoever has this has the lock.
pub(crate) type Held = ArcMutexGuard<RawMutex, ()>;

impl Turn {
    /// Take it, while `is_of_use` does not answer with an error.
    ///
    /// # Errors
    /// Those of `is_of_use`; `TimedOut` when others have it for a minute.
    pub(crate) fn take(&self, is_of_use: impl Fn() -> Result<()>) -> Result<Held> {
        is_of_use()?;
        if let Some(held) = self.0.try_lock_arc() {
            return Ok(held);
        }
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(held) = self.0.try_lock_arc_for(LOOK) {
                return Ok(held);
            }
            is_of_use()?;
            if Instant::now() >= until {
                return Err(Error::new(Kind::TimedOut, "metadata: changes before this one take too long"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn one_has_it_at_a_time() {
        let (turn, count) = (Turn::default(), AtomicU64::new(0));
        let add = || {
            for _ in 0..10_000 {
                let _held = turn.take(|| Ok(())).expect("taken");
                let seen = count.load(Ordering::Relaxed);
                hint::black_box(&turn);
                count.store(seen + 1, Ordering::Relaxed);
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(add))));
        assert_eq!(count.into_inner(), 80_000);
    }

    #[test]
    fn who_waits_in_vain_goes_and_others_go_on() {
        let (turn, is_of_use) = (Turn::default(), AtomicBool::new(true));
        let useful = || {
            let error = || Error::new(Kind::TimedOut, "disk");
            is_of_use.load(Ordering::SeqCst).then_some(()).ok_or_else(error)
        };
        thread::scope(|scope| {
            let held = turn.take(useful).expect("free");
            let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| turn.take(useful).map(drop))).collect();
            thread::sleep(Duration::from_millis(20));
            is_of_use.store(false, Ordering::SeqCst);
            for waiter in waiters {
                let told = waiter.join().expect("no panic").map_err(|e| e.kind());
                assert_eq!(told, Err(Kind::TimedOut));
            }
            assert!(turn.take(useful).is_err(), "nobody begins to wait");
            is_of_use.store(true, Ordering::SeqCst);
            let other = scope.spawn(|| turn.take(useful).map(drop));
            // In another thread than the one that took it.
            scope.spawn(move || drop(held));
            other.join().expect("no panic").expect("free again");
        });
        drop(turn.take(useful).expect("free"));
    }
}
