//! The daemon as a library: the committer over RocksDB, the stripes over the store, and the
//! background work. [`Node`] is the embedded implementation of the Fabric seam.
#![cfg_attr(not(test), deny(clippy::print_stderr))]

mod accounts;
mod bell;
mod cache;
mod collector;
mod compact;
mod copier;
mod copies;
mod db;
mod events;
mod group;
mod hub;
mod inplace;
mod jobs;
mod loans;
mod locks;
mod maps;
mod node;
mod policies;
mod rebuild;
mod recency;
mod repair;
mod room;
mod scrub;
mod shards;
mod silence;
mod spare;
mod spill;
mod standing;
mod status;
mod stripes;
mod tiers;
mod turn;
mod worker;

pub use accounts::AccountUsage;
pub use events::Events;
pub use hub::{Hub, KEPT, Local, Session, Who};
pub use jobs::{Runner, RunnerOptions};
pub use node::{Node, Options};
pub use standing::Redundancy;
pub use status::{Counters, MountStatus, NodeStatus, Status};
pub use tiers::PlaceUsage;
