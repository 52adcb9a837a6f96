//! Answers that name an inode, under leases.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{Errno, INodeNo, ReplyEntry, Request};
use kos_types::lease::{Mode, Want};
use kos_types::{Attr, Error, Fabric, FileKind, Ino};

use super::Requests;
use super::convert::{caller, entry, ino};
use crate::fs::Fs;
use crate::leases::{Found, whole};

impl<F: Fabric + 'static> Requests<F> {
    pub(super) fn make(
        &self,
        reply: ReplyEntry,
        (parent, name): (INodeNo, &OsStr),
        kind: FileKind,
        bits: (u32, u32, u32),
        req: &Request,
        target: Vec<u8>,
    ) {
        let (dir, name, who) = (ino(parent), name.as_bytes().to_vec(), caller(req));
        let held_up = self.watch(req);
        self.0.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let _held_up = held_up;
            let made = leased.and_then(|()| fs.create((dir, &name), kind, bits, who, &target));
            entry(fs, reply, dir, made);
        });
    }

    /// Answer with a name of a directory whose names are kept.
    pub(super) fn kept_entry(&self, reply: ReplyEntry, dir: Ino, name: Vec<u8>) {
        self.0.ask(vec![Want::names(dir, Mode::Shared)], move |fs, leased| {
            match leased.and_then(|()| fs.find((dir, &name))) {
                Ok(Found::Nothing) => reply.error(Errno::ENOENT),
                Ok(Found::Attr(attr)) => entry(fs, reply, dir, Ok(attr)),
                Ok(Found::Inode(found, want)) => found_entry(fs, reply, dir, found, want),
                Err(e) => entry(fs, reply, dir, Err(e)),
            }
        });
    }
}

/// Answer with a name and what is true of its inode under a lease.
pub(super) fn leased_entry<F: Fabric + 'static>(
    fs: &Arc<Fs<F>>,
    reply: ReplyEntry,
    dir: Ino,
    found: Result<Attr, Error>,
) {
    let file = match &found {
        Ok(attr) if attr.kind == FileKind::File => attr.ino,
        _ => return entry(fs, reply, dir, found),
    };
    found_entry(fs, reply, dir, file, whole(file, Mode::Shared));
}

/// Answer with what is true of an inode under a lease.
pub(super) fn found_entry<F: Fabric + 'static>(
    fs: &Arc<Fs<F>>,
    reply: ReplyEntry,
    dir: Ino,
    found: Ino,
    want: Want,
) {
    fs.ask(vec![want], move |fs, leased| {
        entry(fs, reply, dir, leased.and_then(|()| fs.found(found)));
    });
}
