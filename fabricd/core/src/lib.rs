//! Decisions: a deterministic state machine over ordered tables. It owns what every command means
//! and what every read answers; it has no clock, thread, socket, file or randomness.
#![no_std]
extern crate alloc;

mod acl;
mod apply;
mod extents;
mod history;
pub mod job;
pub mod keys;
pub mod lease;
mod namespace;
pub mod policy;
pub mod quota;
pub mod read;
pub mod record;
mod session;
mod tables;

pub use apply::{Applied, Effect, apply, initialise, initialise_for};
pub use history::{AsOf, snapshots};
pub use tables::{Changes, MemTables, Overlay, Pair, Tables};
