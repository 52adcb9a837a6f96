//! Shorter waits, for tests of what hangs.

use std::time::Duration;

/// What is waited for something that may never come. In builds with the feature `faults`, which no binary that is installed
/// has, a fraction of it when the variable `KOS_HASTE` says which: 4 is a quarter.
#[cfg(not(feature = "faults"))]
#[must_use]
#[inline(always)]
pub const fn patience(limit: Duration) -> Duration {
    limit
}

/// As in other builds, or a fraction of it.
#[cfg(feature = "faults")]
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    static HASTE: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let read =
        |text: String| text.parse().ok().filter(|&haste| haste > 0).expect("KOS_HASTE: a number above 0");
    limit / *HASTE.get_or_init(|| std::env::var("KOS_HASTE").map_or(1, read))
}
