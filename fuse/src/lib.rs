//! The mount: kernel requests become questions to an `impl Fabric`, and written bytes are kept
//! until they are flushed as stripes. It owns file semantics and the write buffer; it must not
//! know how a fabric works.
#![cfg_attr(not(test), deny(clippy::print_stderr))]

mod arena;
mod attach;
mod control;
mod file;
mod fs;
mod jobs;
mod known;
mod leases;
mod locks;
mod mount;
mod once;
mod relaxed;
mod seal;
mod session;
mod signals;
pub mod supervisor;
#[cfg(test)]
mod tests;

pub use attach::{detach_dead, program as fusermount};
pub use control::{ControlFile, WriteControl};
pub use mount::{MountFlags, MountOptions, Mounted, Recall, SessionKind, mount};
