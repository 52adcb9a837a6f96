//! The daemon under a supervisor, which keeps its mount for the next one.

use std::sync::Arc;

use fabricd::Node;
use kos_fuse::Mounted;
use kos_fuse::supervisor::{HANDED_OVER, Kept, Link};
use kos_types::{Error, Result};

use super::waits::Waits;

/// The supervisor, if this daemon has one.
#[derive(Debug, Default)]
pub(crate) struct Supervised {
    /// The mount leaves its connections there.
    pub(crate) link: Option<Arc<Link>>,
    /// What the daemon before this one left.
    pub(crate) kept: Kept,
}

impl Supervised {
    /// With a supervisor, `is` says, or without.
    ///
    /// # Errors
    /// `Io` when it does not say what it keeps: then the mount may be there, and must not be mounted over.
    pub(crate) fn take(is: bool) -> Result<Self> {
        if !is {
            return Ok(Self::default());
        }
        let (link, kept) = Link::take().map_err(|e| Error::io("supervisor", &e))?;
        Ok(Self { link: Some(Arc::new(link)), kept })
    }

    /// Its process.
    pub(crate) fn supervisor(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.supervisor())
    }

    /// Tell it that a crash is to be answered by a restart.
    pub(crate) fn serving(&self) {
        if let Some(Err(e)) = self.link.as_ref().map(|link| link.serving()) {
            kos_types::log!("fabricd: supervisor: {e}");
        }
    }

    /// Whether the next daemon would find the mount.
    pub(crate) fn may_hand_over(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.keeps_devices())
    }

    /// Whether it is gone; that is said once.
    pub(crate) fn has_lost(&mut self) -> bool {
        self.link.take_if(|link| link.is_lost()).is_some()
    }
}

/// Write everything out, and end at once: the mount stays, and its programs wait for the next daemon. What of it fails is left to
/// that one, as after a crash.
pub(crate) fn hand_over(mounted: &Mounted, node: &Node) -> ! {
    let ending = Waits::begin("hand-over");
    ending.waits_for("the flush of what programs wrote");
    if let Err(e) = mounted.flush_all() {
        node.events().add("hand-over", &format!("not all could be flushed: {e}"));
    }
    node.events()
        .add("hand-over", &format!("pid {} leaves the mount to the next daemon", std::process::id()));
    kos_types::log_written();
    #[expect(unsafe_code, reason = "no safe wrapper of _exit")]
    // SAFETY: it takes a number. Nothing is unwound and no handler runs: threads still use what those would free.
    unsafe {
        libc::_exit(HANDED_OVER.into())
    }
}
