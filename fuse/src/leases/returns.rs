//! Giving leases back: what is buffered is committed, what is cached goes. All of it happens in threads of the
//! leases and of [`Watch`], never in one that serves requests: those are needed for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kos_types::lease::{Cache, GrantId, Lane, Leases, Mode, Span, TREE};
use kos_types::{Error, Fabric, Ino, Kind, Result};

use super::pages::Pages;
use crate::fs::Fs;
use crate::relaxed::Seen;
use crate::session::Caches;

/// Between tries to flush.
const PAUSE: Duration = Duration::from_millis(200);
/// After so long what cannot be flushed is given up: somebody waits for it.
const TRIED: Duration = Duration::from_secs(8);

/// A mount's memory, as its leases see it.
pub(crate) struct Returns<F> {
    pub(crate) fs: Arc<Fs<F>>,
    pub(crate) kernel: Arc<dyn Caches>,
}

impl<F: Fabric> Returns<F> {
    fn files(&self, ino: Ino) -> Vec<Ino> {
        if ino == TREE { self.fs.files.open_files() } else { vec![ino] }
    }

    /// Commit what is buffered of a file, or discard it and tell its users.
    fn flush_file(&self, ino: Ino) {
        let start = Instant::now();
        while let Err(e) = self.fs.files.flush(ino) {
            if start.elapsed() > TRIED {
                let what = format!("inode {}: {e}; another mount waited for it", ino.0);
                self.fs.fabric.report("lost", &what);
                self.fs.files.discard(ino, &e);
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    fn drop_pages(&self, recall: Option<GrantId>, ino: Ino, span: Span) {
        if let Err(e) = self.fs.held.pages.drop_all(&*self.kernel, recall, (ino, span)) {
            kos_types::log!("kos-fuse: inode {} may be read as it was: {e}", ino.0);
        }
    }
}

impl<F: Fabric> Cache for Returns<F> {
    /// The kernel holds the pages of a write that goes through its cache until it is answered, and such a write may reach over
    /// two parts: with one of them held, what asks for that would wait for who waits for the other.
    fn is_undivided(&self, ino: Ino) -> bool {
        self.fs.files.is_cached(ino)
    }

    fn flush(&self, ino: Ino, lane: Lane, _span: Span) {
        // Changes of names are not buffered.
        if lane == Lane::Names && ino != TREE {
            return;
        }
        self.files(ino).into_iter().for_each(|ino| self.flush_file(ino));
    }

    fn invalidate(&self, recall: GrantId, ino: Ino, lane: Lane, span: Span, mode: Mode) {
        if lane == Lane::Names && ino != TREE {
            return self.fs.held.kept.forget(ino);
        }
        if ino == TREE {
            self.fs.held.kept.forget_all();
        }
        for ino in self.files(ino) {
            self.fs.files.forget_size(ino);
            // Pages that may be changed unseen are only there under an exclusive lease. Under a shared one there
            // may be a request for such a page, which waits for the exclusive lease, and the kernel for it.
            if mode == Mode::Shared && self.fs.held.to_fill(ino) == Mode::Exclusive {
                if let Err(e) = self.kernel.drop_attributes(ino) {
                    kos_types::log!("kos-fuse: inode {} may be seen as it was: {e}", ino.0);
                }
                continue;
            }
            self.drop_pages(Some(recall), ino, span);
            if mode == Mode::Exclusive {
                self.flush_file(ino);
            }
        }
    }

    fn valid_until(&self, micros: u64) {
        self.fs.arena.set_valid_until(micros);
    }

    fn abandon(&self) -> Vec<Ino> {
        self.fs.held.lost.store(true, Ordering::SeqCst);
        self.fs.held.kept.forget_all();
        for ino in self.fs.files.open_files() {
            self.fs.files.forget_size(ino);
            self.drop_pages(None, ino, Span::ALL);
        }
        let why = Error::new(Kind::Io, "the session was lost, and with it what was not flushed");
        let discarded = self.fs.files.discard_all(&why);
        for ino in &discarded {
            self.fs.fabric.report("lost", &format!("inode {}: {why}", ino.0));
        }
        self.fs.held.lost.store(false, Ordering::SeqCst);
        discarded
    }
}

/// The kernel's caches, and what is known of them.
pub(crate) struct Noted<F> {
    pub(crate) fs: Arc<Fs<F>>,
    pub(crate) kernel: Arc<dyn Caches>,
}

impl<F: Fabric> Caches for Noted<F> {
    fn drop_range(&self, file: Ino, off: u64, len: u64) -> io::Result<()> {
        self.fs.known.thrown_out(file);
        self.kernel.drop_range(file, off, len)
    }

    fn drop_attributes(&self, file: Ino) -> io::Result<()> {
        self.fs.known.thrown_out(file);
        self.kernel.drop_attributes(file)
    }

    fn enlarge(&self, file: Ino, size: u64) -> io::Result<()> {
        self.kernel.enlarge(file, size)?;
        self.fs.known.enlarged(file, size);
        Ok(())
    }
}

/// The thread that lets requests in where the kernel waits for them, and the one that tells the kernel of files for other
/// reasons than a recall; they end when this is dropped.
pub(crate) struct Watch {
    pages: Arc<Pages>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start<F: Fabric + 'static>(
        fs: &Arc<Fs<F>>,
        leases: Arc<dyn Leases>,
        kernel: Arc<dyn Caches>,
    ) -> Result<Self> {
        let pages = Arc::clone(&fs.held.pages);
        let mut watch = Self { pages: Arc::clone(&pages), threads: Vec::new() };
        let own = Arc::clone(&pages);
        watch.spawn("lease-watch", move || own.watch(|recall, ino, span| leases.admit(recall, ino, span)))?;
        let (fs, mut seen) = (Arc::clone(fs), Seen::new());
        watch.spawn("pages", move || pages.tell_for_others(&*kernel, || fs.refresh(&*kernel, &mut seen)))?;
        Ok(watch)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(run);
        self.threads.push(thread.map_err(|e| Error::io("leases: thread", &e))?);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.pages.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                kos_types::log!("kos-fuse: a thread of the leases panicked");
            }
        }
    }
}
