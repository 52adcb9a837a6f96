//! The disk tier: shards at rest in append-only segment files, spread over a node's places.
//!
//! It owns bytes and their durability. It refuses to know what a shard is and which shard lies
//! where: that index is its caller's, and is handed in at [`Store::open`]. Nothing is ever
//! overwritten; a freed range becomes a hole, a segment without live bytes is deleted. A disk that hangs
//! holds up nobody for longer than `limits` says.
#![cfg_attr(not(test), deny(clippy::print_stderr))]

pub mod fault;
mod fds;
mod flush;
pub mod lane;
mod limits;
mod location;
mod log;
mod place;
mod segment;
mod spare;
mod store;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, MutexGuard};

pub use location::Location;
pub use log::SegmentUsage;
pub use place::Medium;
pub use store::{PlaceStatus, Store, Usage};

/// The guard of a mutex under which nothing panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics under this lock")
}
