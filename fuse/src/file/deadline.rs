//! How long a request may wait, and a lock that is waited for no longer.
//!
//! Every call of the fabric ends within its own deadline, also on a disk that hangs (docs/adr/0082), and a file's state and the tables of a
//! mount are locked for at most three of them. What makes many calls looks at a [`Deadline`]
//! between them, and whoever waits for it waits with one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kos_types::{Error, Kind, Result};

/// When a request has waited long enough.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Self {
        Self(Instant::now() + patience)
    }

    fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// # Errors
    /// `TimedOut` when it has passed.
    pub(crate) fn check(self, what: &'static str) -> Result<()> {
        if self.left().is_zero() { Err(Error::new(Kind::TimedOut, what)) } else { Ok(()) }
    }
}

/// A lock of one holder at a time.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    held: Mutex<bool>,
    free: Condvar,
}

/// Whoever has this has the turn.
#[derive(Debug)]
pub(crate) struct Held<'a>(&'a Turn);

impl Turn {
    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `TimedOut` when another holds it all the time.
    pub(crate) fn take(&self, deadline: Deadline) -> Result<Held<'_>> {
        let waited = self.free.wait_timeout_while(self.held(), deadline.left(), |held| *held);
        let (mut held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *held {
            return Err(Error::new(
                Kind::TimedOut,
                "file: its flush takes too long; the bytes stay in memory",
            ));
        }
        *held = true;
        Ok(Held(self))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.held() = false;
        self.0.free.notify_one();
    }
}
