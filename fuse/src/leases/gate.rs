//! Requests that began while the mount was alone: whoever joins waits for them.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kos_types::{Error, Kind, Result};

/// Threads count in a place of their own, so that none waits for another's cache line.
const SLOTS: usize = 16;
/// Between looks whether they have ended.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot(AtomicUsize);

#[derive(Debug, Default)]
pub(crate) struct Gate {
    slots: [Slot; SLOTS],
}

/// A request that runs without leases.
#[derive(Debug)]
pub(crate) struct Alone<'a>(&'a Slot);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// This thread's slot.
fn slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS);
        }
        own.get()
    })
}

impl Gate {
    /// Begin a request, unless it needs leases.
    pub(crate) fn enter(&self, shared: impl FnOnce() -> bool) -> Option<Alone<'_>> {
        let slot = &self.slots[slot()];
        slot.0.fetch_add(1, Ordering::SeqCst);
        let alone = Alone(slot);
        // Asked after it was counted: whoever begins to share looks at the count after saying so.
        (!shared()).then_some(alone)
    }

    /// Wait for all that began before leases were needed. Others do not stay.
    pub(crate) fn drain(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        for slot in &self.slots {
            while slot.0.load(Ordering::SeqCst) > 0 {
                if Instant::now() > until {
                    return Err(Error::new(Kind::TimedOut, "leases: a request does not end"));
                }
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn nobody_is_alone_after_a_drain() {
        let (gate, shared) = (Gate::default(), AtomicBool::new(false));
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let Some(_alone) = gate.enter(|| shared.load(Ordering::SeqCst)) else { return };
                        inside.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(20));
            shared.store(true, Ordering::SeqCst);
            gate.drain(Duration::from_secs(60)).expect("they end");
            assert_eq!(inside.load(Ordering::SeqCst), 0);
        });
        let alone = gate.enter(|| false);
        assert!(gate.drain(Duration::from_millis(5)).is_err());
        drop(alone);
    }
}
