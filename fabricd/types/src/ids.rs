//! Identifiers. None is ever reused.

/// Inode number: 10 bits reserved for a metadata group, 10 for a view (0 is the live tree, any
/// other a snapshot), then 44 bits of number (ADR 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Ino(pub u64);

/// Bits of an [`Ino`] that number the inode within its group.
const INO_BITS: u32 = 44;
/// Views a mount can tell apart, the live tree among them.
pub const VIEWS: u64 = 1 << 10;

impl Ino {
    /// The view it is seen in.
    #[must_use]
    pub const fn view(self) -> u64 {
        self.0 >> INO_BITS & (VIEWS - 1)
    }

    /// The same inode in another view, below [`VIEWS`].
    #[must_use]
    pub const fn in_view(self, view: u64) -> Self {
        Self(self.0 & !((VIEWS - 1) << INO_BITS) | view << INO_BITS)
    }
}

/// The root directory of the regions' tree. 1 is FUSE's own root, where the control tree lives.
pub const ROOT: Ino = Ino(2);

/// Stripe number: the top 16 bits are reserved for a metadata group, then 28 bits of id batch
/// and 20 bits of counter within the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

/// One client's time with the fabric: what it holds ends with it. Never reused; 0 is the fabric
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SessionId(pub u64);

/// Sequence number of a commit, counted from 1 and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);
