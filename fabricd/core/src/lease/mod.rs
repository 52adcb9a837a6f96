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

pub use kos_types::lease::{
    Epoch, GrantId, Holds, Lane, Mode, RequestId, Span, TREE, ToClient, ToLeader, Want,
};

pub use client::{Client, FileId, Input, Output};
pub use locks::{Answer, Lock, LockKind, Locks, Owner, Waiter};
pub use table::{Action, Commit, Event, Refusal, Table};

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
    /// What a request waits for a leader who is away: longer than a restart.
    pub away: u64,
    /// Leases of one session; beyond it the oldest shared ones are recalled.
    pub session_leases: usize,
    /// Pieces of one inode and session; beyond it pieces are recalled whole, not split.
    pub inode_pieces: usize,
    /// Requests of one session that may wait; also those parked at the session.
    pub session_requests: usize,
    /// Leases of one request: a listing shows what is true of so many files.
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
        away: 30_000_000,
        session_leases: 65_536,
        inode_pieces: 64,
        session_requests: 1024,
        request_wants: 40,
    };
}
