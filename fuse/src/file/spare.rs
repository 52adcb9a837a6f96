//! Buffers of one stripe that are used again: memory fresh from the kernel costs more than the copy
//! that fills it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kos_types::limits::STRIPE_BYTES_MAX;

/// Buffers kept: what one file has in memory while it is written at full speed, 64 MiB.
const KEPT_MAX: usize = 2 * super::FLUSH_BYTES / STRIPE_BYTES_MAX;

/// Of all mounts of the process, so that the bound is the process's.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Vec<u8>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty buffer with room for a stripe.
pub(super) fn take() -> Vec<u8> {
    let used = kept().pop();
    used.unwrap_or_else(|| Vec::with_capacity(STRIPE_BYTES_MAX))
}

/// A buffer that is not needed any more; only those with room for one stripe are kept.
pub(super) fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() != STRIPE_BYTES_MAX {
        return;
    }
    buffer.clear();
    let mut kept = kept();
    if kept.len() < KEPT_MAX {
        kept.push(buffer);
    }
}

/// Let half of them go: called each second, so that idle mounts keep none.
pub(super) fn trim() {
    let mut kept = kept();
    let half = kept.len() / 2;
    let gone = kept.split_off(half);
    drop(kept);
    drop(gone);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_goes() {
        // Other tests use it at the same time: only what holds with them is asserted.
        for _ in 0..2 * KEPT_MAX {
            give(Vec::with_capacity(STRIPE_BYTES_MAX));
            give(vec![1; 100]);
        }
        assert!(kept().len() <= KEPT_MAX);
        assert!(kept().iter().all(|buffer| buffer.is_empty() && buffer.capacity() == STRIPE_BYTES_MAX));
        let buffer = take();
        assert!(buffer.is_empty() && buffer.capacity() == STRIPE_BYTES_MAX);
        let mut tries = 0;
        while !kept().is_empty() {
            trim();
            tries += 1;
            assert!(tries < 10_000, "trimmed and never empty");
        }
    }
}
