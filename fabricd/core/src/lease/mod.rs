//! Coherence between mounts: who may cache and buffer what. It owns the leader's table of leases
//! ([`Table`]) and what a mount may do with its own ([`Client`]); it has no clock and sends nothing:
//! time and messages go in, messages and things to do come out.
//!
//! Times are microseconds of the caller's own steady clock. Messages of one connection arrive in
//! order or not at all, and none of an old connection arrives after the first of a new one.

mod client;
mod locks;
mod loss;
mod pieces;
mod queue;
mod recall;
mod table;

use alloc::vec::Vec;

use kos_types::Ino;
use kos_types::limits::STRIPE_BYTES_MAX;

pub use client::{Client, FileId, Input, Output};
pub use locks::{Answer, Lock, LockKind, Locks, Owner, Waiter};
pub use table::{Action, Commit, Event, Refusal, Table};

/// How often the log has opened or fenced a session. What carries an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A request of one session, as it numbers them; never used twice within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The order of a leader's grants and recalls, over changes of the leader too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId {
    /// The leader's term.
    pub term: u64,
    /// Counts within the term.
    pub counter: u64,
}

/// What of an inode a lease is about. Leases of different lanes never conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
pub enum Mode {
    /// May cache.
    Shared,
    /// May cache and buffer changes.
    Exclusive,
}

/// The bytes `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

    /// Whether they share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn and(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// What of it lies before and behind `other`.
    fn minus(self, other: Self) -> impl Iterator<Item = Self> {
        let before = Self { start: self.start, end: self.end.min(other.start) };
        let behind = Self { start: self.start.max(other.end), end: self.end };
        [before, behind].into_iter().filter(|span| span.start < span.end)
    }
}

/// Stands for every inode: one exclusive lease on it covers all. Only a session that is alone gets it.
pub const TREE: Ino = Ino(0);

/// A lease somebody wants or has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        /// Names the acknowledgement. Only what was granted before it is meant.
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

/// Every bound of the leases, with its reason. Times are microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A session counts as alive this long after its last renewal: above a long pause of a busy
    /// machine, below what people wait for.
    pub ttl: u64,
    /// The leader waits this much longer: clocks that drift, and the time to empty caches.
    pub margin: u64,
    /// Between renewals: two may be lost.
    pub renew: u64,
    /// An exclusive lease is not recalled before this, so that one that bounces does some work each time.
    pub hold: u64,
    /// To acknowledge a recall: a full write buffer reaches a slow disk in it.
    pub recall: u64,
    /// Leases of one session; beyond it the oldest shared ones are recalled.
    pub session_leases: usize,
    /// Pieces of one inode and session; beyond it pieces are recalled whole, not split.
    pub inode_pieces: usize,
    /// Requests of one session that may wait; also those parked at the session.
    pub session_requests: usize,
    /// Leases of one request: a rename needs two directories and what it replaces.
    pub request_wants: usize,
}

impl Limits {
    /// What a cluster runs with.
    pub const DEFAULT: Self = Self {
        ttl: 3_000_000,
        margin: 500_000,
        renew: 1_000_000,
        hold: 5_000,
        recall: 10_000_000,
        session_leases: 65_536,
        inode_pieces: 64,
        session_requests: 1024,
        request_wants: 8,
    };
}
