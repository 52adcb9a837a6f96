//! Whether who waits for an answer has a signal pending, and waits for it no more.

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Requests that are remembered: told of before they were known to wait, or while they were looked at.
const KEPT_MAX: usize = 1024;
/// And for how long: longer than either takes. Most of them have had their answer.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Who waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    /// The kernel's number of the request.
    pub(crate) request: u64,
    /// The thread that made it, as this process sees it; 0 when it does not.
    pub(crate) thread: u32,
}

/// The signals of a mount's programs.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// The session tells of them. Else they are looked for.
    are_told: AtomicBool,
    /// Requests that were interrupted, and how many they are.
    requests: Mutex<VecDeque<(u64, Instant)>>,
    count: AtomicUsize,
}

impl Signals {
    fn requests(&self) -> MutexGuard<'_, VecDeque<(u64, Instant)>> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        while requests.front().is_some_and(|(_, since)| since.elapsed() > KEPT_FOR) {
            requests.pop_front();
        }
        requests
    }

    /// The session will tell.
    pub(crate) fn will_be_told(&self) {
        self.are_told.store(true, Ordering::Relaxed);
    }

    /// A request was interrupted. Numbers are not used again.
    pub(crate) fn tell(&self, request: u64) {
        let mut requests = self.requests();
        if requests.len() == KEPT_MAX {
            requests.pop_front();
        }
        requests.push_back((request, Instant::now()));
        self.count.store(requests.len(), Ordering::SeqCst);
    }

    /// Whether this one was; that is asked once.
    pub(crate) fn was_told(&self, request: u64) -> bool {
        // Most programs get none.
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut requests = self.requests();
        let at = requests.iter().position(|&(told, _)| told == request);
        if let Some(at) = at {
            requests.remove(at);
        }
        self.count.store(requests.len(), Ordering::SeqCst);
        at.is_some()
    }

    /// Whether it is of no use to wait on.
    pub(crate) fn interrupts(&self, waiter: Waiter) -> bool {
        if self.are_told.load(Ordering::Relaxed) {
            self.was_told(waiter.request)
        } else {
            is_signalled(waiter.thread)
        }
    }
}

/// What the kernel tells of a thread's signals: a mask by its name.
fn masks(thread: u32) -> Option<impl Fn(&str) -> u64> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    Some(move |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    })
}

/// Whether a thread has a signal pending that it neither blocks nor ignores.
fn is_signalled(thread: u32) -> bool {
    masks(thread).is_some_and(|of| (of("SigPnd") | of("ShdPnd")) & !of("SigBlk") & !of("SigIgn") != 0)
}

/// Whether a thread is about to end by a signal: the kernel makes each that ends its process SIGKILL for all its threads.
/// Any other is none of a filesystem's business: no local one answers EINTR to a read or to a look at attributes.
pub(crate) fn is_killed(thread: u32) -> bool {
    masks(thread).is_some_and(|of| of("SigPnd") & 1 << (libc::SIGKILL - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_of_once_and_few_are_kept() {
        let signals = Signals::default();
        signals.will_be_told();
        let interrupts = |request| signals.interrupts(Waiter { request, thread: 0 });
        assert!(!interrupts(7));
        signals.tell(7);
        assert!(!interrupts(8));
        assert!(interrupts(7) && !interrupts(7));
        (0..2 * KEPT_MAX as u64).for_each(|request| signals.tell(request));
        assert!(!is_killed(std::process::id()));
        assert!(!interrupts(0) && interrupts(KEPT_MAX as u64) && interrupts(2 * KEPT_MAX as u64 - 1));
    }
}
