//! Files of `user.kos.consistency` other than strong: they are shared without leases (ADR 87). What others have
//! committed, this mount's process always sees; what this is about is its buffer and the kernel's pages.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use kos_types::{Consistency, Fabric, Ino, LockAnswer, Result, Time};

use crate::fs::{Caching, Fs};
use crate::leases::{Tell, is_shared};
use crate::session::Caches;

/// What the pages of a file were filled from: its change time and size.
pub(crate) type Seen = HashMap<Ino, (Time, u64)>;

impl<F: Fabric> Fs<F> {
    /// How a file that is about to be opened is shared.
    pub(crate) fn consistency_of(&self, ino: Ino) -> Result<Consistency> {
        if is_shared(ino) {
            self.fabric.sharing(ino).map(|said| said.consistency)
        } else {
            Ok(Consistency::Strong)
        }
    }

    /// How a file that is open here is shared, as its first open found it.
    fn consistency(&self, ino: Ino) -> Consistency {
        self.files.find(ino).map_or(Consistency::Strong, |node| node.state().users.consistency)
    }

    /// Whether a file is used without leases here.
    pub(crate) fn is_relaxed(&self, ino: Ino) -> bool {
        self.consistency(ino) != Consistency::Strong
    }

    /// How a file is opened through the page cache.
    pub(crate) fn cached(&self, consistency: Consistency) -> Caching {
        let shared = self.fabric.shared() || self.was_shared.load(Ordering::Relaxed);
        if !shared || consistency == Consistency::Strong {
            return Caching::Keep;
        }
        // Pages filled beside others stay when those have gone.
        self.was_shared.store(true, Ordering::Relaxed);
        Caching::Fresh
    }

    /// What others shall see when this is done: a close, or a lock given back.
    pub(crate) fn release_to_others(&self, ino: Ino) -> Result<()> {
        if self.fabric.shared() && self.consistency(ino) == Consistency::Release {
            return self.files.flush(ino);
        }
        Ok(())
    }

    /// Whoever was granted a lock reads what others did before they gave it back: it is told after that.
    pub(crate) fn acquire_from_others(
        &self,
        ino: Ino,
        answer: Result<LockAnswer>,
        tell: impl FnOnce(Result<LockAnswer>) + Send + 'static,
    ) {
        let granted = matches!(answer, Ok(LockAnswer::Granted));
        if granted && self.fabric.shared() && self.consistency(ino) == Consistency::Release {
            self.held.after(ino, Tell::Drop, Box::new(move || tell(answer)));
        } else {
            tell(answer);
        }
    }

    /// Throw out the pages of open files that are eventually the same everywhere, where others changed them. Called each
    /// second.
    pub(crate) fn refresh(&self, kernel: &dyn Caches, seen: &mut Seen) {
        let open = if self.fabric.shared() { self.files.eventual_files() } else { HashSet::new() };
        seen.retain(|ino, _| open.contains(ino));
        for ino in open {
            // Removed, or nobody answers: it is looked at again.
            let Ok(attr) = self.fabric.attr(ino) else { continue };
            let now = (attr.ctime, attr.size);
            if seen.insert(ino, now).is_some_and(|before| before != now)
                && let Err(e) = kernel.drop_pages(ino)
            {
                kos_types::log!("kos-fuse: inode {} may be read as it was: {e}", ino.0);
            }
        }
    }
}
