//! One error for every crate: what happened, and at which step. The errno is decided here once.

use std::fmt;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Kind {
    /// No such entry or inode.
    NotFound,
    /// The name exists already.
    Exists,
    /// A path component is not a directory.
    NotDir,
    /// The operation needs something that is not a directory.
    IsDir,
    /// The directory is not empty.
    NotEmpty,
    /// The caller may not.
    NotPermitted,
    /// A bad argument.
    Invalid,
    /// A name of more than 255 bytes.
    NameTooLong,
    /// A file of more than 2^63-1 bytes.
    TooLarge,
    /// More links than an inode can count.
    TooManyLinks,
    /// The pool is full.
    NoSpace,
    /// The quota is used up.
    QuotaExceeded,
    /// No such extended attribute.
    NoAttr,
    /// The value does not fit.
    Range,
    /// The inode is gone.
    Stale,
    /// The session's epoch or grant was taken back: what it proposes counts no more.
    Fenced,
    /// The other directory has another quota: to copy and remove does what is meant.
    CrossDevice,
    /// The tree is a snapshot.
    ReadOnly,
    /// A bound is reached; try again later.
    Busy,
    /// Somebody uses it in a way that stands against the change.
    InUse,
    /// The deadline passed.
    TimedOut,
    /// A signal came while the caller waited.
    Interrupted,
    /// The operation is not offered.
    Unsupported,
    /// Bytes are lost or the device failed.
    Io,
}

/// An error with the step it happened in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    step: String,
}

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `step` names what was being done.
    #[must_use]
    pub fn new(kind: Kind, step: impl Into<String>) -> Self {
        Self { kind, step: step.into() }
    }

    /// An operating system's error met in `step`.
    #[must_use]
    pub fn io(step: &str, source: &std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC) => Kind::NoSpace,
            Some(libc::EDQUOT) => Kind::QuotaExceeded,
            Some(libc::ENOENT) => Kind::NotFound,
            _ => Kind::Io,
        };
        Self::new(kind, format!("{step}: {source}"))
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// What was being done, or what was wrong with it.
    #[must_use]
    pub fn step(&self) -> &str {
        &self.step
    }

    /// The errno a program sees.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self.kind {
            Kind::NotFound => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::NotDir => libc::ENOTDIR,
            Kind::IsDir => libc::EISDIR,
            Kind::NotEmpty => libc::ENOTEMPTY,
            Kind::NotPermitted => libc::EPERM,
            Kind::Invalid => libc::EINVAL,
            Kind::NameTooLong => libc::ENAMETOOLONG,
            Kind::TooLarge => libc::EFBIG,
            Kind::TooManyLinks => libc::EMLINK,
            Kind::NoSpace => libc::ENOSPC,
            Kind::QuotaExceeded => libc::EDQUOT,
            Kind::NoAttr => libc::ENODATA,
            Kind::Range => libc::ERANGE,
            Kind::Stale => libc::ESTALE,
            Kind::Fenced => libc::EIO,
            Kind::CrossDevice => libc::EXDEV,
            Kind::ReadOnly => libc::EROFS,
            Kind::Busy => libc::EAGAIN,
            Kind::InUse => libc::EBUSY,
            Kind::TimedOut => libc::ETIMEDOUT,
            Kind::Interrupted => libc::EINTR,
            Kind::Unsupported => libc::EOPNOTSUPP,
            Kind::Io => libc::EIO,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.step, self.kind)
    }
}

impl std::error::Error for Error {}
