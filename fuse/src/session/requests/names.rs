//! Requests that look names up and change them, under leases.

use std::sync::Arc;

use kos_types::lease::{Mode, Want};
use kos_types::{Attr, Error, Fabric, FileKind, Ino, Kind, RenameMode};

use super::answer::{Answer, Found, Reply, entry, errno, plain, sized};
use super::{From, Requests};
use crate::fs::{Caching, Fs, Name};
use crate::leases::{self, is_shared, whole};
use crate::seal::no_copy;

/// A file that was made and opened.
pub(crate) struct Created {
    pub(crate) found: Found,
    pub(crate) handle: u64,
    pub(crate) caching: Caching,
}

impl<F: Fabric + 'static> Requests<F> {
    pub(crate) fn lookup(&self, (dir, name): Name<'_>, reply: impl Reply<Found>) {
        self.fs.job_awaited((dir, name));
        let alone = self.fs.alone();
        if alone.is_none() && self.fs.is_remote {
            match self.fs.control_target((dir, name)) {
                Some(found) => {
                    return found_entry(&self.fs, dir, found, Want::names(found, Mode::Shared), reply);
                }
                None if is_shared(dir) => return self.kept_entry((dir, name), reply),
                None => {}
            }
        }
        let found = self.fs.lookup((dir, name));
        if alone.is_some() {
            return reply(entry(&self.fs, dir, found));
        }
        leased_entry(&self.fs, dir, found, reply);
    }

    /// Answer with a name of a directory whose names are kept.
    fn kept_entry(&self, (dir, name): Name<'_>, reply: impl Reply<Found>) {
        let name = name.to_vec();
        self.fs.ask(vec![Want::names(dir, Mode::Shared)], move |fs, leased| {
            match leased.and_then(|()| fs.find((dir, &name))) {
                Ok(leases::Found::Nothing) => reply(Err(libc::ENOENT)),
                Ok(leases::Found::Attr(attr)) => reply(entry(fs, dir, Ok(attr))),
                Ok(leases::Found::Inode(found, want)) => found_entry(fs, dir, found, want, reply),
                Err(e) => reply(Err(errno(&e))),
            }
        });
    }

    /// `bits` are mode, umask and device.
    pub(crate) fn make(
        &self,
        (dir, name): Name<'_>,
        kind: Option<FileKind>,
        bits: (u32, u32, u32),
        from: From,
        target: &[u8],
        reply: impl Reply<Found>,
    ) {
        let Some(kind) = kind else { return reply(Err(libc::EINVAL)) };
        let (name, target) = (name.to_vec(), target.to_vec());
        let (held_up, once) = (self.watch(from), self.once(from));
        self.fs.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            let made = leased.and_then(|()| fs.create((dir, &name), kind, bits, from.caller, &target));
            reply(entry(fs, dir, made));
        });
    }

    pub(crate) fn unlink(&self, (dir, name): Name<'_>, from: From, reply: impl Reply<()>) {
        let (held_up, once, name) = (self.watch(from), self.once(from), name.to_vec());
        self.fs.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            reply(plain(leased.and_then(|()| fs.unlink((dir, &name)))));
        });
    }

    pub(crate) fn rmdir(&self, (dir, name): Name<'_>, from: From, reply: impl Reply<()>) {
        let (held_up, once, name) = (self.watch(from), self.once(from), name.to_vec());
        self.fs.under_names(vec![dir], vec![(dir, name.clone())], move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            reply(plain(leased.and_then(|()| fs.rmdir((dir, &name)))));
        });
    }

    /// `flags` are renameat2(2)'s.
    pub(crate) fn rename(
        &self,
        from_name: Name<'_>,
        to_name: Name<'_>,
        flags: u32,
        from: From,
        reply: impl Reply<()>,
    ) {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply(Err(libc::EINVAL)),
        };
        let (held_up, once) = (self.watch(from), self.once(from));
        let own = |(dir, name): Name<'_>| (dir, name.to_vec());
        let (old, new) = (own(from_name), own(to_name));
        self.fs.under_names(vec![old.0, new.0], vec![old.clone(), new.clone()], move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            let rename = |()| fs.rename((old.0, &old.1), (new.0, &new.1), mode, from.caller);
            reply(plain(leased.and_then(rename)));
        });
    }

    pub(crate) fn link(&self, node: Ino, (dir, name): Name<'_>, from: From, reply: impl Reply<Found>) {
        let (held_up, once, name) = (self.watch(from), self.once(from), name.to_vec());
        if let Some(_alone) = self.fs.alone() {
            let _doing = once.doing();
            return reply(entry(&self.fs, dir, self.fs.link(node, (dir, &name), from.caller)));
        }
        self.fs.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            let linked = leased.and_then(|()| fs.link(node, (dir, &name), from.caller));
            // Until the answer.
            let once = once.clone();
            leased_entry(fs, dir, linked, move |found| {
                reply(found);
                drop(once);
            });
        });
    }

    /// `bits` are mode and umask, `flags` open(2)'s.
    pub(crate) fn create(
        &self,
        (dir, name): Name<'_>,
        (mode, umask): (u32, u32),
        flags: i32,
        from: From,
        reply: impl Reply<Created>,
    ) {
        let (held_up, once) = (self.watch(from), self.opens(from));
        let bits = (mode & 0o7777, umask, 0);
        let caller = from.caller;
        if let Some(_alone) = self.fs.alone() {
            let _doing = once.doing();
            let attr = self.fs.create((dir, name), FileKind::File, bits, caller, b"");
            return reply(created(&self.fs, dir, flags, attr));
        }
        let name = name.to_vec();
        self.fs.under_names(vec![dir], Vec::new(), move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            match leased.and_then(|()| fs.create((dir, &name), FileKind::File, bits, caller, b"")) {
                // It is about to be written.
                Ok(attr) => fs.ask(vec![whole(attr.ino, Mode::Exclusive)], move |fs, leased| {
                    let _doing = once.doing();
                    reply(created(fs, dir, flags, leased.and_then(|()| fs.attr(attr.ino))));
                }),
                Err(e) => reply(created(fs, dir, flags, Err(e))),
            }
        });
    }
}

impl<F: Fabric + 'static> Requests<F> {
    /// A file without a name. `bits` are mode and umask, `flags` open(2)'s.
    pub(crate) fn tmpfile(
        &self,
        dir: Ino,
        (mode, umask): (u32, u32),
        flags: i32,
        from: From,
        reply: impl Reply<Created>,
    ) {
        let (held_up, once) = (self.watch(from), self.opens(from));
        let doing = once.doing();
        let alone = self.fs.alone();
        // The directory stays as it is, so no lease on its names is needed.
        let made = match self.fs.create_unnamed(dir, (mode & 0o7777, umask), from.caller) {
            Ok(made) => made,
            Err(e) => return reply(Err(errno(&e))),
        };
        if alone.is_some() {
            return reply(unnamed(&self.fs, dir, flags, &made, Ok(())));
        }
        drop(doing);
        // It is about to be written.
        self.fs.ask(vec![whole(made.ino, Mode::Exclusive)], move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            reply(unnamed(fs, dir, flags, &made, leased));
        });
    }
}

/// Open what was just made without a name. It goes when the kernel forgets it, and now if the kernel is not told of it.
fn unnamed<F: Fabric>(
    fs: &Fs<F>,
    dir: Ino,
    flags: i32,
    made: &Attr,
    leased: Result<(), Error>,
) -> Answer<Created> {
    let opened = created(fs, dir, flags, leased.map(|()| made.clone()));
    fs.unlinked(made);
    opened
}

/// Open what was just created.
fn created<F: Fabric>(fs: &Fs<F>, dir: Ino, flags: i32, result: Result<Attr, Error>) -> Answer<Created> {
    let open = |attr: Attr| {
        let how = (flags, fs.consistency_of(attr.ino)?);
        Ok((fs.opened(attr.ino, how, &no_copy)?, attr))
    };
    match result.and_then(open) {
        Ok(((handle, caching), attr)) => {
            entry(fs, dir, Ok(attr)).map(|found| Created { found, handle, caching })
        }
        // Through another mount, since the kernel looked: it looks again, and checks who may open.
        Err(e) if e.kind() == Kind::Exists && flags & libc::O_EXCL == 0 => Err(libc::ESTALE),
        Err(e) => Err(errno(&e)),
    }
}

/// Answer with a name and what is true of its inode under a lease.
fn leased_entry<F: Fabric + 'static>(
    fs: &Arc<Fs<F>>,
    dir: Ino,
    found: Result<Attr, Error>,
    reply: impl Reply<Found>,
) {
    let file = match &found {
        Ok(attr) if attr.kind == FileKind::File => attr.ino,
        _ => return reply(entry(fs, dir, found)),
    };
    found_entry(fs, dir, file, whole(file, Mode::Shared), reply);
}

/// Answer with what is true of an inode under a lease.
fn found_entry<F: Fabric + 'static>(
    fs: &Arc<Fs<F>>,
    dir: Ino,
    found: Ino,
    want: Want,
    reply: impl Reply<Found>,
) {
    fs.ask(vec![want], move |fs, leased| {
        sized(fs, entry(fs, dir, leased.and_then(|()| fs.found(found))), reply);
    });
}
