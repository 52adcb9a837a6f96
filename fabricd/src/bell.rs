//! Tells waiters that jobs changed, without saying which: whoever hears it looks.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A counter that can be waited on.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<u64>,
    heard: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.heard.notify_all();
    }

    /// Wait until it has rung since `seen`, at most `max`. Answers how often it has.
    pub(crate) fn wait(&self, seen: u64, max: Duration) -> u64 {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.heard.wait_timeout_while(rung, max, |rung| *rung == seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
