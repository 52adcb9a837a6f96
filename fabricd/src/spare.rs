//! Buffers that are used again: memory fresh from the kernel costs about what filling it does.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers kept: as many as stripes are coded at once on a common machine.
const KEPT_MAX: usize = 8;
/// Bytes of one that is kept: parity of a full stripe of 4+2. Larger ones are of rare geometries.
const BYTES_MAX: usize = 2 << 20;

/// A few buffers, of at most 16 MiB together while nobody uses them.
#[derive(Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn kept(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do something with a buffer, which holds what its last user left.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut buffer = self.kept().pop().unwrap_or_default();
        let done = act(&mut buffer);
        let mut kept = self.kept();
        if kept.len() < KEPT_MAX && buffer.capacity() <= BYTES_MAX {
            kept.push(buffer);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_small_ones_are_kept() {
        let spare = Spare::default();
        let mut nested = 0;
        fn nest(spare: &Spare, depth: usize, count: &mut usize) {
            spare.with(|buffer| {
                buffer.resize(10, 1);
                *count += 1;
                if depth > 0 {
                    nest(spare, depth - 1, count);
                }
            });
        }
        nest(&spare, 2 * KEPT_MAX, &mut nested);
        assert_eq!((nested, spare.kept().len()), (2 * KEPT_MAX + 1, KEPT_MAX));
        let capacity = spare.with(|buffer| {
            assert_eq!(buffer.len(), 10, "a used one");
            buffer.reserve(BYTES_MAX);
            buffer.capacity()
        });
        assert!(capacity > BYTES_MAX);
        assert_eq!(spare.kept().len(), KEPT_MAX - 1);
    }
}
