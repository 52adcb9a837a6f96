//! The fabric over a unix socket: frames, a server for any [`kos_types::Fabric`], and a client that
//! is one. It knows nothing of what stands behind either end.
//!
//! A connection carries one request at a time; a client has as many connections as it has
//! requests in flight. Bytes of stripes follow a frame's message as they are, so that each end
//! copies them once.

mod client;
mod frame;
mod greeting;
mod held;
mod leases;
pub mod limits;
mod loans;
mod message;
mod server;
mod socket;

pub use client::{Client, Options};
pub use leases::{LeaseEnd, LeaseLink, LeaseOutbox};
pub use message::{Claim, ControlInfo, DECODERS, Decoder};
pub use server::{Host, Numbered, Peer, Server, serve};
