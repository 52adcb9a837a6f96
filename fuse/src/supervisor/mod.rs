//! A small process that outlives the daemon: it holds the open connections of the daemon's mount, so that after a crash or
//! an upgrade the next daemon serves the same mount, and programs see a delay. It knows neither what is mounted nor what
//! the kernel says: it never reads from what it holds.
//!
//! The daemon is its child and speaks with it by a socket that is the daemon's standard input.

mod keeper;
mod link;
mod plan;
#[cfg(test)]
mod tests;
mod watchdog;
mod wire;

use std::os::fd::OwnedFd;

pub use keeper::supervise;
pub use link::Link;
pub use plan::HANDED_OVER;
pub use watchdog::{watch, watched};

/// Connections of one mount: one for each of its threads, and room.
const DEVICES_MAX: usize = 64;

/// What an earlier process left with the supervisor.
#[derive(Debug, Default)]
pub struct Kept {
    /// What it held in memory.
    pub memory: Option<OwnedFd>,
    /// The connections of its mount.
    pub devices: Vec<OwnedFd>,
}
