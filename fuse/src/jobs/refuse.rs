//! `rejected/`: for each name the last file that was refused under it, and why.

use kos_types::{
    Cred, Error, Fabric, FileKind, Ino, JOBS, JOBS_REJECTED, Kind, Op, RenameMode, Reply, Result, Submitter,
    limits,
};

use super::is_ignored;
use crate::fs::Fs;

/// Entries kept; the oldest go first.
const REJECTED_MAX: usize = 512;

fn error_name(name: &[u8]) -> Vec<u8> {
    [name, b".error"].concat()
}

impl<F: Fabric> Fs<F> {
    /// Say why a file was refused. That this fails is logged: the refusal stands anyway.
    pub(super) fn refuse(&self, name: &[u8], submitter: &Submitter, why: &str) {
        let written = self.clear(&error_name(name)).and_then(|()| self.bound_rejected()).and_then(|()| {
            let cred = Cred { uid: submitter.uid, gid: submitter.gid };
            let op = Op::Create {
                parent: JOBS_REJECTED,
                name: error_name(name),
                kind: FileKind::File,
                mode: 0o644,
                umask: 0,
                cred,
                rdev: 0,
                target: Vec::new(),
            };
            match self.fabric.propose(op)? {
                Reply::Attr(attr) => {
                    self.files.write(attr.ino, Some(0), format!("{why}\n").as_bytes()).map(drop)
                }
                other => Err(Error::new(Kind::Io, format!("create: unexpected reply {other:?}"))),
            }
        });
        if let Err(e) = written {
            kos_types::log!("kos-fuse: rejected/{}.error: {e}", String::from_utf8_lossy(name));
        }
    }

    /// A later file of that name was accepted.
    pub(super) fn unrefuse(&self, name: &[u8]) {
        for entry in [error_name(name), name.to_vec()] {
            if let Err(e) = self.clear(&entry) {
                kos_types::log!("kos-fuse: rejected/{}: {e}", String::from_utf8_lossy(&entry));
            }
        }
    }

    /// The refused file itself: nothing of what somebody wrote is lost.
    pub(super) fn keep_refused(&self, name: &[u8], ino: Ino) -> Result<()> {
        if !self.fabric.lookup(JOBS, name).is_ok_and(|attr| attr.ino == ino) {
            return Ok(());
        }
        self.clear(name)?;
        self.bound_rejected()?;
        let op = Op::Rename {
            parent: JOBS,
            name: name.to_vec(),
            new_parent: JOBS_REJECTED,
            new_name: name.to_vec(),
            mode: RenameMode::Replace,
        };
        self.fabric.propose(op).map(drop)
    }

    fn clear(&self, name: &[u8]) -> Result<()> {
        match self.fabric.lookup(JOBS_REJECTED, name) {
            Ok(_) => self.drop_name((JOBS_REJECTED, name)),
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn bound_rejected(&self) -> Result<()> {
        let entries = self.fabric.list(JOBS_REJECTED, 0, limits::LIST_ENTRIES_MAX)?;
        let surplus = (entries.len() + 1).saturating_sub(REJECTED_MAX);
        entries.iter().take(surplus).try_for_each(|entry| self.drop_name((JOBS_REJECTED, &entry.name)))
    }

    /// Files that the end of a node left behind, before their last writer closed them. Where the mount outlives its process
    /// they are still being dropped.
    pub(crate) fn job_leftovers(&self, resumes: bool) -> Result<()> {
        let mut after = 0;
        match self.fabric.attr(JOBS) {
            // This fabric runs no jobs.
            Err(e) if e.kind() == Kind::Stale => return Ok(()),
            other => other?,
        };
        loop {
            let entries = self.fabric.list(JOBS, after, limits::LIST_ENTRIES_MAX)?;
            let Some(last) = entries.last() else { return Ok(()) };
            after = last.cookie;
            for entry in entries {
                if entry.attr.kind == FileKind::File && !is_ignored(&entry.name) {
                    let owner = Submitter { uid: entry.attr.uid, gid: entry.attr.gid, groups: Vec::new() };
                    if resumes {
                        self.job_goes_on(&entry, owner)?;
                        continue;
                    }
                    self.refuse(
                        &entry.name,
                        &owner,
                        "the node ended before the file was closed: drop it again",
                    );
                    self.keep_refused(&entry.name, entry.attr.ino)?;
                }
            }
        }
    }
}
