//! What the state machine promises: the same as a simple model under random commands, and what the
//! model is too small for. A failure of the random tests prints the seed that repeats it.

mod compact;
mod extents;
mod fs;
mod inline;
mod invariants;
mod job;
mod lease;
mod limits;
mod listing;
mod model;
mod ops;
mod overlay;
mod policy;
mod quotas;
mod rng;
mod sessions;
mod snapshots;
mod spec;
mod unnamed;
