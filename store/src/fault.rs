//! Failpoints: steps of the commit path that a test makes fail, by the variable `KOS_FAULTS`. They
//! exist only in builds with the feature `faults`, which no binary that is installed has; in all
//! others every call here is nothing.
//!
//! `KOS_FAULTS` is a list, separated by commas: `POINT=ACTION@N` lets the Nth pass through a point
//! fail, `POINT=ACTION@NxM` those from the Nth on, M of them. The actions are `io` and `nospace`,
//! errors as of a disk, and `abort`, the end of the process. The word `no-fsync` leaves every fsync
//! of ours out.

/// Every point, in the order of a write's way.
pub const POINTS: [&str; 11] = [
    BATCH,
    SEGMENT,
    APPEND,
    PLACE_SYNC,
    SETTLED,
    TABLES_WRITE,
    TABLES_WRITTEN,
    LOG_SYNC,
    COLLECTED,
    FREE,
    MOVE,
];
/// A batch of stripe ids is about to be opened.
pub const BATCH: &str = "batch";
/// A segment file is about to be made.
pub const SEGMENT: &str = "segment";
/// A shard is about to be appended.
pub const APPEND: &str = "append";
/// A place is about to be synced.
pub const PLACE_SYNC: &str = "place-sync";
/// A commit's shards are as durable as they have to be; the tables know nothing of it.
pub const SETTLED: &str = "settled";
/// The tables are about to be written.
pub const TABLES_WRITE: &str = "tables-write";
/// The tables have been written; an error here is one of unknown outcome.
pub const TABLES_WRITTEN: &str = "tables-written";
/// The tables' log is about to be synced.
pub const LOG_SYNC: &str = "log-sync";
/// The tables have forgotten dead stripes, their blocks are still there.
pub const COLLECTED: &str = "collected";
/// A shard's blocks are about to be given back.
pub const FREE: &str = "free";
/// The memory tier is about to be moved to disk.
pub const MOVE: &str = "move";

/// Pass through a point.
///
/// # Errors
/// What the test asked for.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn at(_point: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// Whether fsync is to be left out.
#[cfg(not(feature = "faults"))]
#[must_use]
#[inline(always)]
pub const fn fsync_is_out() -> bool {
    false
}

#[cfg(feature = "faults")]
pub use on::{at, fsync_is_out};

#[cfg(feature = "faults")]
mod on {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::io::Errno;

    use super::POINTS;

    static PLAN: OnceLock<Plan> = OnceLock::new();

    #[derive(Debug, Default)]
    struct Plan {
        no_fsync: bool,
        faults: Vec<Fault>,
    }

    #[derive(Debug)]
    struct Fault {
        point: String,
        /// None aborts.
        error: Option<Errno>,
        /// Passes that fail: the first, and how many.
        first: u64,
        count: u64,
        passes: AtomicU64,
    }

    impl Plan {
        fn get() -> &'static Self {
            PLAN.get_or_init(|| {
                let text = std::env::var("KOS_FAULTS").unwrap_or_default();
                Self::parse(&text).unwrap_or_else(|| panic!("KOS_FAULTS: cannot read {text:?}"))
            })
        }

        fn parse(text: &str) -> Option<Self> {
            let mut plan = Self::default();
            for item in text.split(',').filter(|item| !item.is_empty()) {
                if item == "no-fsync" {
                    plan.no_fsync = true;
                } else {
                    plan.faults.push(Fault::parse(item)?);
                }
            }
            Some(plan)
        }
    }

    impl Fault {
        fn parse(item: &str) -> Option<Self> {
            let (point, rest) = item.split_once('=')?;
            let (action, passes) = rest.split_once('@')?;
            let (first, count) = passes.split_once('x').unwrap_or((passes, "1"));
            let error = match action {
                "io" => Some(Errno::IO),
                "nospace" => Some(Errno::NOSPC),
                "abort" => None,
                _ => return None,
            };
            let (first, count) = (first.parse().ok()?, count.parse().ok()?);
            let known = POINTS.contains(&point);
            known.then(|| Self { point: point.to_owned(), error, first, count, passes: AtomicU64::new(0) })
        }
    }

    /// Pass through a point.
    ///
    /// # Errors
    /// What the test asked for.
    pub fn at(point: &'static str) -> io::Result<()> {
        for fault in Plan::get().faults.iter().filter(|fault| fault.point == point) {
            let pass = fault.passes.fetch_add(1, Ordering::SeqCst) + 1;
            if pass < fault.first || pass - fault.first >= fault.count {
                continue;
            }
            kos_types::log!("fault: {point}, pass {pass}: {:?}", fault.error);
            match fault.error {
                Some(errno) => return Err(errno.into()),
                None => {
                    kos_types::log_written();
                    std::process::abort()
                }
            }
        }
        Ok(())
    }

    /// Whether fsync is to be left out.
    #[must_use]
    pub fn fsync_is_out() -> bool {
        Plan::get().no_fsync
    }
}
