//! The vocabulary every kosfs crate shares: ids, attributes, commands, errors, limits and the
//! [`Fabric`] seam between front ends and the fabric. It decides nothing and does no I/O but
//! [`log!`].
#![cfg_attr(not(test), deny(clippy::print_stderr))]

mod attr;
mod command;
mod error;
mod fabric;
mod haste;
mod ids;
mod job;
pub mod lease;
pub mod limits;
mod lock;
mod log;
mod policy;

pub use attr::{Attr, Dirent, FileKind, Snapshot, SpaceUsage, Time};
pub use command::{
    Command, Cred, ExtentPut, Once, Op, Origin, RenameMode, Reply, SetAttr, SetSize, TimeChange, XattrMode,
};
pub use error::{Error, Kind, Result};
pub use fabric::{Access, Extent, ExtentMap, Fabric, Source};
pub use haste::patience;
pub use ids::{Ino, ROOT, Seq, SessionId, StripeId, VIEWS};
pub use job::{JOBS, JOBS_BY_NAME, JOBS_REJECTED, Job, JobId, JobOp, JobState, Submitter};
pub use lock::{FileLock, LockAnswer, LockKind};
#[doc(hidden)]
pub use log::{log_in_thread, log_line, log_written};
pub use policy::{Class, Compress, Consistency, Geometry, Pin, Policy, Sharing};
