//! `kos up`, `down`, `status` and `sync` as a user types them, each test on a state and a mount of its own.

mod life;
mod place;
mod redundancy;
mod refusals;
mod session;
mod supervisor;
mod users;
