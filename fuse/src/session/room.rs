//! Where each thread of the session puts the bytes of a read together.
//!
//! The same memory for every request: fresh memory costs more than the copy into it. It begins with a
//! page, because the kernel copies from pages: to 16 bytes behind the start of one, where malloc puts
//! large buffers, some processors copy at a quarter of their speed.

use std::cell::RefCell;

const PAGE_BYTES: usize = 4096;

thread_local! {
    /// As large as the largest read so far: the kernel asks for 1 MiB at most.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Do something with `len` bytes, which are any.
pub(super) fn with<T>(len: usize, act: impl FnOnce(&mut [u8]) -> T) -> T {
    ROOM.with_borrow_mut(|room| {
        if room.len() < len + PAGE_BYTES {
            room.resize(len + PAGE_BYTES, 0);
        }
        let to_page = room.as_ptr().addr().wrapping_neg() % PAGE_BYTES;
        act(&mut room[to_page..to_page + len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_a_page_and_has_the_length() {
        for len in [0, 1, 4096, 1 << 20, 5] {
            with(len, |room| {
                assert_eq!((room.len(), room.as_ptr().addr() % PAGE_BYTES), (len, 0));
                room.fill(1);
            });
        }
    }
}
