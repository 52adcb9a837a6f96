//! Mounts of a second process, through STATE/kos.sock.

mod inplace;
mod life;
mod locks;
mod loss;
mod mapped;
mod names;
mod random;
mod ranges;
mod recall;
mod refusals;
mod relaxed;
mod seal;
mod signals;
mod together;
mod unnamed;
mod watchdog;

use kos_tests::second;
