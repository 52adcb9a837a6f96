//! Identifiers. None is ever reused.

/// Inode number. The top 16 bits are reserved for a metadata group, the next 15 for a view
/// (snapshot); both are zero on one node and the live tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// The root directory of the regions' tree. 1 is FUSE's own root, where the control tree lives.
pub const ROOT: Ino = Ino(2);

/// Stripe number: the top 16 bits are reserved for a metadata group, then 28 bits of id batch
/// and 20 bits of counter within the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeId(pub u64);

/// Bits of a [`StripeId`] that count within one batch.
const COUNTER_BITS: u32 = 20;

impl StripeId {
    /// The id number `counter` of `batch`, or `None` when the batch is used up.
    #[must_use]
    pub const fn in_batch(batch: u64, counter: u64) -> Option<Self> {
        if counter >> COUNTER_BITS != 0 || batch >> 28 != 0 {
            return None;
        }
        Some(Self(batch << COUNTER_BITS | counter))
    }

    /// The batch this id was handed out from.
    #[must_use]
    pub const fn batch(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

/// Sequence number of a commit, counted from 1 and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);
