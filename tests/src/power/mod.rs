//! A filesystem for tests that can lose its power.
//!
//! It keeps everything in memory: what programs see, and apart from it what is on stable storage.
//! fsync and fdatasync of a file make its bytes and size stable, and nothing else; fsync of a
//! directory makes the names in it stable. Owners, modes and times count as stable at once: nothing
//! under test relies on them. A cut chooses from a seed what of the rest survives (see [`Cut`]), as
//! POSIX allows and no better than the filesystems people use. Directories of it can also hang:
//! what needs the disk is answered only when it is let go (see [`Hang`]).
//!
//! `content`, `disk` and `cut` decide and do no I/O; `mount` translates the kernel's requests.

mod content;
mod cut;
mod disk;
mod hang;
mod mount;

pub use cut::Cut;
pub use disk::Disk;
pub use hang::Hang;
pub use mount::PowerFs;
