//! What was slow when it was last asked for: a ring's thread hands it over and serves its processor's other programs.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::session::protocol::Header;

/// Longer than anything that is in memory takes, shorter than most disks.
const SLOW: Duration = Duration::from_millis(1);
/// So many fast ones in a row, and it is done in the ring's thread again.
const MARK: u8 = 8;
/// What meets in a slot is slow together.
const SLOTS: usize = 256;

/// Kinds of requests of inodes, by experience.
#[derive(Debug)]
pub(super) struct Slow([AtomicU8; SLOTS]);

impl Default for Slow {
    fn default() -> Self {
        Self([const { AtomicU8::new(0) }; SLOTS])
    }
}

impl Slow {
    fn slot(&self, header: &Header) -> &AtomicU8 {
        // Fibonacci hashing (Knuth, vol. 3, 6.4).
        let mixed = (header.node ^ u64::from(header.opcode) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.0[(mixed >> 56) as usize]
    }

    pub(super) fn is_slow(&self, header: &Header) -> bool {
        self.slot(header).load(Ordering::Relaxed) > 0
    }

    /// Do it, and learn from that.
    pub(super) fn watch(&self, header: &Header, run: impl FnOnce()) {
        let start = Instant::now();
        run();
        let (slot, took) = (self.slot(header), start.elapsed());
        // Whoever loses a count by another's is a little early or late.
        match slot.load(Ordering::Relaxed) {
            _ if took >= SLOW => slot.store(MARK, Ordering::Relaxed),
            0 => {}
            mark => slot.store(mark - 1, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::session::protocol::opcode;

    #[test]
    fn what_was_slow_is_slow_until_it_was_fast_for_a_while() {
        let slow = Slow::default();
        let of =
            |opcode| Header { len: 40, opcode, unique: 1, node: 7, uid: 0, gid: 0, pid: 0, extensions: 0 };
        let (read, write) = (of(opcode::READ), of(opcode::WRITE));
        slow.watch(&read, || ());
        assert!(!slow.is_slow(&read));
        slow.watch(&read, || thread::sleep(2 * SLOW));
        assert!(slow.is_slow(&read) && !slow.is_slow(&write));
        for _ in 0..MARK {
            assert!(slow.is_slow(&read));
            slow.watch(&read, || ());
        }
        assert!(!slow.is_slow(&read));
    }
}
