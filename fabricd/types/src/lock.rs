//! POSIX locks on byte ranges (fcntl), as a fabric keeps them between mounts.

/// What a lock allows others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LockKind {
    /// Read locks.
    Read,
    /// No lock.
    Write,
}

/// A lock on a range of a file, or its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FileLock {
    /// The kernel's name of the process or open file, unique in its mount.
    pub owner: u64,
    /// `None` gives the range back.
    pub kind: Option<LockKind>,
    /// First byte.
    pub start: u64,
    /// The first byte behind it.
    pub end: u64,
    /// What F_GETLK answers.
    pub pid: u32,
    /// One of flock(2), which those of fcntl(2) neither see nor conflict with.
    pub flock: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LockAnswer {
    /// It has the lock.
    Granted,
    /// Somebody else has it: EAGAIN.
    Denied,
    /// It waits.
    Waiting,
    /// It would wait for itself: EDEADLK.
    Deadlock,
    /// A bound is reached: ENOLCK.
    Full,
}
