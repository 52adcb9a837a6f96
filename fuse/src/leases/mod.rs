//! Requests under leases: what a mount must hold before it may answer from memory, or keep in memory what
//! it is told. Alone, a mount has the whole tree and asks for nothing.

mod gate;
mod names;
mod pages;
mod returns;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use kos_types::lease::{Holds, Lane, Leases, Mode, Span, Want};
use kos_types::{Error, Fabric, Ino, Kind, Result};

use crate::control;
use crate::file::PATIENCE;
use crate::fs::Fs;
use crate::jobs;

pub(crate) use gate::Alone;
use gate::Gate;
pub(crate) use names::{Found, Kept};
use pages::{Pages, Then, bytes};
pub(crate) use pages::{Range, Tell};
pub(crate) use returns::{Noted, Returns, Watch};

/// Inodes whose leases one listing asks for at once.
pub(crate) const LISTED_MAX: usize = 32;

/// What a mount knows of its leases.
#[derive(Default)]
pub(crate) struct Held {
    /// Those who give leases back have the mount, so this must not keep them.
    leases: OnceLock<Weak<dyn Leases>>,
    gate: Gate,
    pages: Arc<Pages>,
    /// What is kept of directories.
    pub(crate) kept: Kept,
    /// Open files through which pages may be changed: by a mapping, without a word to us, or by a write that holds them
    /// while it waits for its lease. While there are any, no page of the inode is filled but under an exclusive one.
    writable: Mutex<HashMap<Ino, u32>>,
    /// The session is over, and what mappings still hand over is of it.
    pub(crate) lost: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether pages of a file can be changed through a descriptor opened so.
pub(crate) const fn may_change(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// What a request reads or writes of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touched {
    pub(crate) range: Range,
    /// The kernel holds the pages of the range until it has its answer.
    pub(crate) pages: bool,
}

/// More tries for a lease on a part of a file whose size others change meanwhile; then it is one on all of it.
const TRIES: u32 = 3;

/// All of a file: its bytes, size and times.
pub(crate) const fn whole(ino: Ino, mode: Mode) -> Want {
    Want { ino, lane: Lane::Data, span: Span::ALL, mode }
}

impl Held {
    /// From now on requests can have leases.
    pub(crate) fn begin(&self, leases: &Arc<dyn Leases>) {
        // Set once, when the mount begins.
        drop(self.leases.set(Arc::downgrade(leases)));
    }

    pub(crate) fn opened(&self, ino: Ino, flags: i32) {
        if may_change(flags) {
            *lock(&self.writable).entry(ino).or_default() += 1;
        }
    }

    /// Run something once the kernel was told of a file.
    pub(crate) fn after(&self, ino: Ino, tell: Tell, then: Then) {
        self.pages.tell_then(ino, tell, then);
    }

    pub(crate) fn released(&self, ino: Ino, flags: i32) {
        let mut writable = lock(&self.writable);
        if may_change(flags)
            && let Some(count) = writable.get_mut(&ino)
        {
            *count -= 1;
            if *count == 0 {
                writable.remove(&ino);
            }
        }
    }

    fn is_writable(&self, ino: Ino) -> bool {
        lock(&self.writable).contains_key(&ino)
    }

    /// Under what a page may be filled now.
    pub(crate) fn to_fill(&self, ino: Ino) -> Mode {
        if self.is_writable(ino) { Mode::Exclusive } else { Mode::Shared }
    }
}

/// Whether other mounts may have the inode too.
pub(crate) fn is_shared(ino: Ino) -> bool {
    ino.view() == 0 && !control::owns(ino) && jobs::file_of(ino).is_none()
}

impl<F: Fabric> Fs<F> {
    /// While this lives no other mount has joined: what runs meanwhile needs no lease.
    pub(crate) fn alone(&self) -> Option<Alone<'_>> {
        self.held.gate.enter(|| self.fabric.shared())
    }

    /// Nothing runs any more that began without a lease, now that one is needed.
    pub(crate) fn drain(&self) -> Result<()> {
        self.held.gate.drain(PATIENCE)
    }

    /// Run something as soon as it may: here and now, or later in another thread, with the reason why it may
    /// not.
    pub(crate) fn under(
        self: &Arc<Self>,
        wants: impl FnOnce() -> Vec<Want>,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        if let Some(_alone) = self.alone() {
            return run(self, Ok(()));
        }
        self.ask(wants(), run);
    }

    /// The same, once it is known that a lease is needed.
    pub(crate) fn ask(
        self: &Arc<Self>,
        wants: Vec<Want>,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        self.ask_for(wants, Holds::Nothing, None, run);
    }

    /// The same for what holds pages meanwhile, and may bring a range of bytes into the kernel's page cache.
    pub(crate) fn ask_for(
        self: &Arc<Self>,
        mut wants: Vec<Want>,
        holds: Holds,
        range: Option<Range>,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        wants.retain(|want| is_shared(want.ino) && !self.is_relaxed(want.ino));
        if wants.is_empty() {
            return run(self, Ok(()));
        }
        let Some(leases) = self.held.leases.get().and_then(Weak::upgrade) else {
            return run(self, Err(Error::new(Kind::Io, "leases: the mount ends")));
        };
        let fs = Arc::clone(self);
        let run = move |held: Result<Box<dyn kos_types::lease::Held>>| match held {
            Ok(held) => {
                let admitted = held.admitted();
                run(&fs, Ok(()));
                if let Some(ino) = admitted {
                    fs.files.forget_size(ino);
                    fs.held.pages.ended(ino, range);
                }
                // What a lost session did is discarded, and its files are told.
                let _kept = held.end();
            }
            Err(e) => run(&fs, Err(e)),
        };
        leases.when(&wants, holds, PATIENCE, Box::new(run));
    }

    /// The stripes around a range of a file's bytes, or all of it where a part is of no use.
    fn part(&self, ino: Ino, (off, len): Range, mode: Mode) -> Want {
        if self.files.is_cached(ino) { whole(ino, mode) } else { Want::data(ino, off, len, mode) }
    }

    /// Read under a lease on what is read. Nobody else has made the file longer, or shorter, by what is in the range.
    pub(crate) fn read_under(
        self: &Arc<Self>,
        ino: Ino,
        touched: Touched,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        let mode = self.held.to_fill(ino);
        let want = self.part(ino, touched.range, mode);
        // The kernel asks for several pages ahead, and for each by itself where that failed.
        let holds = match want.span {
            _ if !touched.pages => Holds::Nothing,
            span if span == Span::ALL || span.is_one_stripe() => Holds::Pages(bytes(touched.range)),
            _ => Holds::Several(bytes(touched.range)),
        };
        self.ask_for(vec![want], holds, Some(touched.range), move |fs, leased| {
            // Somebody may have opened it meanwhile who can change pages unseen.
            if leased.is_ok() && mode == Mode::Shared && fs.held.is_writable(ino) {
                return fs.read_under(ino, touched, run);
            }
            run(fs, leased);
        });
    }

    /// Write `len` bytes under a lease, at the end where no place is named. `range` is what the kernel may bring into its
    /// page cache by it.
    pub(crate) fn write_under(
        self: &Arc<Self>,
        ino: Ino,
        (at, len): (Option<u64>, u64),
        range: Range,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        self.try_write_under(ino, (at, len), range, TRIES, run);
    }

    fn try_write_under(
        self: &Arc<Self>,
        ino: Ino,
        (at, len): (Option<u64>, u64),
        range: Range,
        tries: u32,
        run: impl FnOnce(&Arc<Self>, Result<()>) + Send + 'static,
    ) where
        F: 'static,
    {
        let want = if tries == 0 { Ok(whole(ino, Mode::Exclusive)) } else { self.to_write(ino, at, len) };
        let want = match want {
            Ok(want) => want,
            Err(e) => return run(self, Err(e)),
        };
        // What goes past the page cache holds none.
        let holds = if self.files.is_cached(ino) { Holds::Pages(bytes(range)) } else { Holds::Nothing };
        self.ask_for(vec![want], holds, Some(range), move |fs, leased| {
            match leased.and_then(|()| fs.is_enough(&want, at, len)) {
                Ok(false) => fs.try_write_under(ino, (at, len), range, tries.saturating_sub(1), run),
                other => run(fs, other.map(drop)),
            }
        });
    }

    /// What a write needs as far as the file's size is known now.
    fn to_write(&self, ino: Ino, at: Option<u64>, len: u64) -> Result<Want> {
        let known = self.files.size_least(ino);
        let size = match (at, known) {
            // It most likely is long enough.
            (Some(off), None) => off.saturating_add(len),
            (None, None) => self.files.fresh(|| self.fabric.attr(ino))?.size,
            (_, Some(size)) => size,
        };
        let off = at.unwrap_or(size);
        let is_inside = at.is_some() && off.saturating_add(len) <= size;
        let range = if is_inside { (off, len) } else { (off.min(size), u64::MAX) };
        Ok(self.part(ino, range, Mode::Exclusive))
    }

    /// Whether a write may go on under a lease that is here: if it makes the file longer, the lease is on all that lies
    /// behind the end, so that nobody else knows where that is.
    fn is_enough(&self, want: &Want, at: Option<u64>, len: u64) -> Result<bool> {
        if want.span == Span::ALL || !is_shared(want.ino) || self.is_relaxed(want.ino) {
            return Ok(true);
        }
        let size = self.files.learn_size(want.ino)?;
        let is_inside = at.is_some_and(|off| off.saturating_add(len) <= size);
        Ok(is_inside || want.span.end == u64::MAX && want.span.start <= size)
    }

    /// What the kernel hands over of a mapping: there is something only under an exclusive lease, which is
    /// given back when it has arrived.
    pub(crate) fn write_back(&self, ino: Ino, off: u64, data: &[u8], kill: bool) -> Result<u64> {
        if self.held.lost.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Fenced, "write: of a session that was lost"));
        }
        self.write(ino, Some(off), data, kill)
    }

    /// A write that the kernel put in one place is in another: the file was longer than the kernel knew. It has its
    /// answer, for until then it holds its pages.
    pub(crate) fn landed(&self, ino: Ino, (off, len): Range, at: u64) {
        if at != off && self.files.is_cached(ino) {
            self.held.pages.wrong(ino, (off, len));
        }
    }

    /// Leases for what a listing shows of files.
    pub(crate) fn wants_of_listing(&self, dir: Ino, after: u64) -> Result<Vec<Want>> {
        if !is_shared(dir) {
            return Ok(Vec::new());
        }
        let entries = match self.fabric.list(dir, after, LISTED_MAX) {
            // Whoever lists it says so.
            Err(e) if matches!(e.kind(), Kind::Stale | Kind::NotDir) => Vec::new(),
            other => other?,
        };
        let files = entries.into_iter().filter(|entry| entry.attr.kind == kos_types::FileKind::File);
        Ok(files.map(|entry| whole(entry.attr.ino, Mode::Shared)).collect())
    }
}
