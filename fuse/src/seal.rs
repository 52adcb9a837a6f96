//! Sealed files: nobody changes their bytes, so the kernel may read a copy in place. What the fabric
//! holds against changes is refused there; here is what the mount does at open and close.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use kos_types::{Access, Attr, Error, Fabric, FileKind, Ino, Kind, Op, Result, XattrMode};

use crate::file::{Users, Way};
use crate::fs::Fs;
use crate::once;

/// The attribute that seals.
pub(crate) const SEAL: &[u8] = b"user.kos.seal";
/// close(2) returns before its release arrives here: so long one that may be under way is waited for.
pub(crate) const RELEASE_MAX: Duration = Duration::from_millis(100);
const RELEASE_PAUSE: Duration = Duration::from_millis(2);

/// What a session has made of a copy that the kernel is to read. Only that session knows what it is; the
/// kernel is told that it ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Backing {
    /// What the kernel calls it; 0 where only the session may know.
    pub(crate) id: u32,
    pub(crate) held: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing").finish_non_exhaustive()
    }
}

/// Tells the kernel of a copy.
pub(crate) type Register<'a> = &'a dyn Fn(&File) -> io::Result<Backing>;

/// For opens that are never of a copy.
pub(crate) fn no_copy(_: &File) -> io::Result<Backing> {
    Err(io::ErrorKind::Unsupported.into())
}

impl<F: Fabric> Fs<F> {
    /// Open an inode in the fabric; for writing when no seal is under way.
    pub(crate) fn open_in_fabric(&self, ino: Ino, writes: bool) -> Result<Attr> {
        if writes {
            self.await_seal(ino)?;
        }
        self.fabric.open(ino, if writes { Access::Write } else { Access::Read })
    }

    /// A copy for the kernel to read, for the first open of a file.
    pub(crate) fn lend(&self, attr: &Attr, register: Register<'_>) -> Option<Backing> {
        if !attr.sealed || !self.in_place.load(Ordering::Relaxed) {
            return None;
        }
        let copy = self.fabric.lend_copy(attr.ino)?;
        let backing = register(&copy);
        if let Err(e) = &backing {
            self.fabric.return_copy(attr.ino);
            if self.in_place.swap(false, Ordering::Relaxed) {
                kos_types::log!("kos-fuse: sealed files are read through the page cache, not in place: {e}");
            }
        }
        backing.ok()
    }

    pub(crate) fn reader_closed(&self, ino: Ino, way: Way) {
        if let Some(backing) = self.files.close(ino, way, false) {
            // The kernel first: what is given back may be gone at once.
            drop(backing);
            self.fabric.return_copy(ino);
        }
        self.fabric.close(ino, Access::Read);
    }

    pub(crate) fn writer_closed(&self, ino: Ino, way: Way) {
        let node = self.files.node(ino);
        let is_last = {
            let mut state = node.state();
            // Who opens it for writing now waits until it is decided.
            state.users.sealing += 1;
            state.users.leaving += 1;
            state.users.writers == state.users.leaving
        };
        let seals = is_last && self.is_due(ino);
        self.fabric.close(ino, Access::Write);
        if seals {
            self.seal_closed(ino);
        }
        node.end_sealing();
        drop(node);
        // It has read no copy: what is open for writing is not sealed.
        drop(self.files.close(ino, way, true));
    }

    /// What is in force: on a directory for the files in it.
    pub(crate) fn seal_xattr(&self, ino: Ino) -> Result<Vec<u8>> {
        self.await_seal(ino)?;
        let attr = self.fabric.attr(ino)?;
        let value: &[u8] = match attr.kind {
            FileKind::Dir if self.fabric.sharing(ino)?.seal_on_close => b"on-close",
            FileKind::File if attr.sealed => b"1",
            FileKind::Dir | FileKind::File => b"0",
            _ => return Err(Error::new(Kind::NoAttr, "xattr: not of this kind of file")),
        };
        Ok(value.to_vec())
    }

    pub(crate) fn set_seal(&self, ino: Ino, value: &[u8], mode: XattrMode) -> Result<()> {
        let node = self.files.node(ino);
        // Nobody begins to write until it is done, and what was written is what is sealed.
        node.state().users.sealing += 1;
        let released = node.await_close(RELEASE_MAX, |users| users.writers == 0);
        let sealed = if released || value != b"1" {
            self.files.flush(ino).and_then(|()| self.set(ino, value, mode))
        } else {
            Err(Error::new(Kind::InUse, "seal: the file is open for writing"))
        };
        node.end_sealing();
        drop(node);
        self.files.leave(ino);
        sealed
    }

    fn set(&self, ino: Ino, value: &[u8], mode: XattrMode) -> Result<()> {
        let (name, value) = (SEAL.to_vec(), value.to_vec());
        self.patiently(&Op::SetXattr { ino, name, value, mode })?;
        // Also for a word that seals nothing: what is not sealed is not copied.
        if self.in_place.load(Ordering::Relaxed) {
            self.fabric.want_copy(ino);
        }
        Ok(())
    }

    pub(crate) fn remove_seal(&self, ino: Ino) -> Result<()> {
        // A close that has returned decides by the word that was there.
        self.await_release(ino);
        self.patiently(&Op::RemoveXattr { ino, name: SEAL.to_vec() })
    }

    /// Who stands in the way may have closed the file already.
    fn patiently(&self, op: &Op) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.fabric.propose_once(op.clone(), once::name()) {
                Err(e) if e.kind() == Kind::InUse && start.elapsed() < RELEASE_MAX => {
                    thread::sleep(RELEASE_PAUSE)
                }
                other => return other.map(drop),
            }
        }
    }

    /// A writer is about to go. Whether the file is to be sealed: it is the last one here, and all
    /// that was written is in the fabric.
    fn is_due(&self, ino: Ino) -> bool {
        let asked = self.fabric.sharing(ino).map(|sharing| sharing.seal_on_close);
        match asked.and_then(|seals| if seals { self.files.flush(ino).map(|()| true) } else { Ok(false) }) {
            Ok(seals) => seals,
            // A removed directory says nothing.
            Err(e) if e.kind() == Kind::Stale => false,
            Err(e) => {
                self.unsealed(ino, &e);
                false
            }
        }
    }

    /// The last writer here is gone.
    fn seal_closed(&self, ino: Ino) {
        let seal = || {
            let attr = self.fabric.attr(ino)?;
            // Programs make a file empty first and fill it under a second descriptor.
            if attr.size == 0 || attr.nlink == 0 || attr.sealed {
                return Ok(());
            }
            self.set(ino, b"1", XattrMode::Any)
        };
        match seal() {
            // Somebody still writes in another mount, where the last close seals it; or it is gone.
            Err(e) if matches!(e.kind(), Kind::InUse | Kind::Stale) => (),
            Err(e) => self.unsealed(ino, &e),
            Ok(()) => (),
        }
    }

    fn unsealed(&self, ino: Ino, e: &Error) {
        self.fabric.report("unsealed", &format!("inode {} is not sealed at its close: {e}", ino.0));
    }

    /// Wait for the releases of closes that have returned.
    pub(crate) fn await_release(&self, ino: Ino) {
        if let Some(node) = self.files.find(ino) {
            // In vain where a copied descriptor was closed, and another one is still open.
            node.await_close(RELEASE_MAX, |users| users.writers == 0 || !users.quiet);
        }
    }

    /// Before what a seal changes the answer of: a close that has returned seals first.
    pub(crate) fn await_seal(&self, ino: Ino) -> Result<()> {
        let Some(node) = self.files.find(ino) else { return Ok(()) };
        let idle = |users: &Users| users.sealing == 0;
        let closed = |users: &Users| idle(users) && (users.writers == 0 || !users.quiet);
        if closed(&node.state().users) {
            return Ok(());
        }
        if self.fabric.sharing(ino)?.seal_on_close {
            // If it ends in vain, a copied descriptor was closed, and another one is still open.
            node.await_close(RELEASE_MAX, closed);
        }
        if node.await_close(self.files.patience(), idle) {
            return Ok(());
        }
        Err(Error::new(Kind::TimedOut, "open: the file is being sealed"))
    }
}
