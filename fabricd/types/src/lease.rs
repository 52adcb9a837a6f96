//! Who may cache and buffer what: the words of leases, and the seam between a mount and whoever holds its
//! leases. `kos_core::lease` decides, `kos-lease` waits and sends.

use std::time::Duration;

use crate::limits::STRIPE_BYTES_MAX;
use crate::{Ino, Result};

/// How often the log has opened or fenced a session. What carries an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Epoch(pub u64);

/// A request of one session, as it numbers them; never used twice within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RequestId(pub u64);

/// The order of a leader's grants and recalls, over changes of the leader too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GrantId {
    /// The leader's term.
    pub term: u64,
    /// Counts within the term.
    pub counter: u64,
}

/// What of an inode a lease is about. Leases of different lanes never conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Lane {
    /// Bytes, by range.
    Data,
    /// Size, times and mode.
    Attr,
    /// A directory's entries, also those that are not there.
    Names,
}

/// Shared leases go together; an exclusive one goes with nothing of another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Mode {
    /// May cache.
    Shared,
    /// May cache and buffer changes.
    Exclusive,
}

/// The bytes `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// The first byte behind it.
    pub end: u64,
}

impl Span {
    /// Everything.
    pub const ALL: Self = Self { start: 0, end: u64::MAX };

    /// The whole stripes that `len` bytes from `off` on touch.
    #[must_use]
    pub const fn of_stripes(off: u64, len: u64) -> Self {
        const STRIPE: u64 = STRIPE_BYTES_MAX as u64;
        let end = off.saturating_add(if len == 0 { 1 } else { len });
        let end = end.div_ceil(STRIPE).saturating_mul(STRIPE);
        Self { start: off / STRIPE * STRIPE, end }
    }

    /// Whether no part of it can be a lease of its own.
    #[must_use]
    pub const fn is_one_stripe(self) -> bool {
        self.end - self.start <= STRIPE_BYTES_MAX as u64
    }

    /// Whether they share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// What of it lies before and behind `other`.
    pub fn minus(self, other: Self) -> impl Iterator<Item = Self> {
        let before = Self { start: self.start, end: self.end.min(other.start) };
        let behind = Self { start: self.start.max(other.end), end: self.end };
        [before, behind].into_iter().filter(|span| span.start < span.end)
    }
}

/// Stands for every inode: one exclusive lease on it covers all. Only a session that is alone gets it.
pub const TREE: Ino = Ino(0);

/// A lease somebody wants or has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Want {
    /// On which inode.
    pub ino: Ino,
    /// On what of it.
    pub lane: Lane,
    /// On which bytes; all in lanes other than data.
    pub span: Span,
    /// For what.
    pub mode: Mode,
}

impl Want {
    /// The whole stripes around a range of bytes.
    #[must_use]
    pub const fn data(ino: Ino, off: u64, len: u64, mode: Mode) -> Self {
        Self { ino, lane: Lane::Data, span: Span::of_stripes(off, len), mode }
    }

    /// Size and times.
    #[must_use]
    pub const fn attr(ino: Ino, mode: Mode) -> Self {
        Self { ino, lane: Lane::Attr, span: Span::ALL, mode }
    }

    /// A directory's entries.
    #[must_use]
    pub const fn names(dir: Ino, mode: Mode) -> Self {
        Self { ino: dir, lane: Lane::Names, span: Span::ALL, mode }
    }

    /// Everything there is.
    pub const TREE: Self = Self { ino: TREE, lane: Lane::Names, span: Span::ALL, mode: Mode::Exclusive };

    /// Whether two sessions may not have both.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let meets = self.ino == other.ino && self.lane == other.lane && self.span.overlaps(other.span);
        let exclusive = self.mode == Mode::Exclusive || other.mode == Mode::Exclusive;
        exclusive && (meets || self.ino == TREE || other.ino == TREE)
    }
}

/// From a session to the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ToLeader {
    /// First on every connection, and a renewal: what the session holds, for a leader that does not know.
    Hello {
        /// The session's clock.
        sent: u64,
        /// All it holds.
        held: Vec<Want>,
    },
    /// The session lives.
    Renew {
        /// The session's clock; comes back in the answer.
        sent: u64,
    },
    /// Grant all of these at once. Asking again with the same id changes nothing.
    Ask {
        /// Names the answer.
        request: RequestId,
        /// What it needs, also what it has.
        wants: Vec<Want>,
    },
    /// The answer to a request is no longer needed.
    Cancel {
        /// Which.
        request: RequestId,
    },
    /// Given back unasked: what was granted up to `stamp`.
    Release {
        /// The inode.
        ino: Ino,
        /// The lane.
        lane: Lane,
        /// The newest grant the session had seen.
        stamp: GrantId,
    },
    /// A recall is done: everything of it is committed and out of every cache.
    Ack {
        /// Which recall.
        recall: GrantId,
        /// The last commit sent; older ones that arrive from now on are refused.
        seq: u64,
    },
}

/// From the leader to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ToClient {
    /// A hello or a renewal is in force.
    Renewed {
        /// As it was sent.
        sent: u64,
        /// There is no other session.
        alone: bool,
    },
    /// A request is granted, whole.
    Granted {
        /// Which.
        request: RequestId,
        /// What commits under it are stamped with at least.
        id: GrantId,
        /// What was asked, or more.
        grants: Vec<Want>,
    },
    /// Give this back.
    Recall {
        /// Names the acknowledgement. What was granted since is meant too: who gives that back asks again.
        id: GrantId,
        /// The inode.
        ino: Ino,
        /// The lane.
        lane: Lane,
        /// The bytes.
        span: Span,
    },
    /// A request is over a bound and not queued.
    Refused {
        /// Which.
        request: RequestId,
    },
    /// The session's epoch is over.
    Gone,
}

/// What a request that waits for its leases has of the kernel's meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Nothing that a recall waits for.
    Nothing,
    /// The pages of these bytes, all of one lease: the kernel cannot throw them out until there is an answer.
    Pages(Span),
    /// Pages of several leases. It rather fails than have a recall wait for it: two mounts, each with a part of what both want,
    /// would wait for each other.
    Several(Span),
}

impl Holds {
    /// Whether it has pages of these bytes.
    #[must_use]
    pub const fn has(self, span: Span) -> bool {
        matches!(self, Self::Pages(own) | Self::Several(own) if own.overlaps(span))
    }
}

/// What runs when its leases are here, or when they will not be.
pub type Run = Box<dyn FnOnce(Result<Box<dyn Held>>) + Send>;

/// The leases of a request that runs; given up with it.
pub trait Held: Send {
    /// The inode for which it was let in by [`Leases::admit`]: what it brings into the kernel's caches must go
    /// again before that is given back.
    fn admitted(&self) -> Option<Ino>;

    /// The request is done, and the kernel has its reply. Answers whether the leases were held to the end; if
    /// not, what it did is discarded.
    fn end(self: Box<Self>) -> bool;
}

/// The leases of one mount.
pub trait Leases: Send + Sync {
    /// Run something under leases: at once and in this thread if they are here, else later in another. It
    /// must not wait for other leases.
    fn when(&self, wants: &[Want], holds: Holds, patience: Duration, run: Run);

    /// Let what holds pages of these bytes, which this recall waits for, run before the leases are given back, if all that it
    /// wants is still here; [`Holds::Several`] fails where it is not. After the session's end all of it fails. Answers how
    /// many run.
    fn admit(&self, recall: Option<GrantId>, ino: Ino, span: Span) -> usize;
}

/// What a mount keeps in memory. [`TREE`] stands for every inode. No method is called from a thread that serves
/// requests; each may wait for requests that run.
pub trait Cache: Send + Sync {
    /// Whether a lease on a part of a file is of no use here: all that is held of its bytes is given back together.
    fn is_undivided(&self, ino: Ino) -> bool;

    /// Commit what is buffered here; what cannot be is discarded, and its files told.
    fn flush(&self, ino: Ino, lane: Lane, span: Span);

    /// Take this out of every cache, the kernel's too, and commit what that brings to light. `mode` is what is
    /// given back, for which recall.
    fn invalidate(&self, recall: GrantId, ino: Ino, lane: Lane, span: Span, mode: Mode);

    /// Discard everything buffered, refusing write-backs, and empty every cache. Answers the inodes that
    /// lost changes.
    fn abandon(&self) -> Vec<Ino>;

    /// When the session is over, unless it is renewed by then: microseconds of CLOCK_BOOTTIME, 0 without a session. For who
    /// watches this process: then everything must be out of every cache, whether it runs or not.
    fn valid_until(&self, _micros: u64) {}
}
