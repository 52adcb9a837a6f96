//! Files that are made without a name: O_TMPFILE.

use kos_types::{Attr, Fabric, Ino, Op, Reply, Result};

use super::{Fs, fixed, unexpected};
use crate::control;
use crate::jobs::Caller;

impl<F: Fabric> Fs<F> {
    /// It goes as an unlinked file does, unless a link gives it a name: whoever calls hands its attributes to
    /// [`Fs::unlinked`] once the kernel was told of it, or will not be.
    pub(crate) fn create_unnamed(&self, parent: Ino, (mode, umask): (u32, u32), who: Caller) -> Result<Attr> {
        if control::owns(parent) {
            return Err(fixed());
        }
        let mode = Self::job_create_unnamed(parent, mode)?;
        match self.files.propose(Op::CreateUnnamed { parent, mode, umask, cred: who.cred })? {
            Reply::Attr(attr) => Ok(attr),
            other => Err(unexpected(&other)),
        }
    }
}
