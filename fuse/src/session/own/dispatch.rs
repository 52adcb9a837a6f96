//! Each operation of the kernel's as a request in our words, and its answer back.

use std::sync::{Arc, Weak};

use kos_types::{Fabric, FileKind, Ino, SetAttr, SetSize};

use super::answer::{Opening, attributes, created, entry, lock, names, space, statx, time_change, value};
use super::device::Channels;
use super::pool::Pool;
use super::reply::Reply;
use crate::session::protocol::{self, Agreed, Header, Operation, Setattr, decode, reply as encode};
use crate::session::requests::{Answer, Created, Found, From, Lock, Requests, Write, kind_of_mode};

/// What a copy's answer can count in 32 bits; whole blocks keep the next call aligned.
const COPY_MAX: u64 = 1 << 30;

/// The requests of a connection.
pub(super) struct Dispatch<F> {
    pub(super) requests: Requests<F>,
    pub(super) agreed: Agreed,
    pub(super) channels: Weak<Channels>,
    pub(super) pool: Arc<Pool>,
}

fn set_attr(set: &Setattr) -> SetAttr {
    SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size.map(|size| SetSize { size }),
        atime: set.atime.map(time_change),
        mtime: set.mtime.map(time_change),
        kill_suidgid: set.kill_suidgid,
    }
}

const fn asked(lock: &protocol::Lock) -> Lock {
    Lock {
        owner: lock.owner,
        start: lock.start,
        last: lock.end,
        kind: lock.kind,
        pid: lock.pid,
        flock: lock.flock,
    }
}

impl<F: Fabric + 'static> Dispatch<F> {
    /// Answer a request, here or later in another thread.
    pub(super) fn handle(&self, header: &Header, args: &[u8], payload: &[u8], reply: Reply) {
        match decode(header, args, payload, &self.agreed) {
            Ok(operation) => self.ask(header, operation, reply),
            Err(e) => {
                kos_types::log!("kos-fuse: request {} of the kernel: {e}", header.opcode);
                reply.error(libc::EIO);
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "one line or two for each operation that there is")]
    fn ask(&self, header: &Header, operation: Operation<'_>, reply: Reply) {
        let all = &self.requests;
        let node = Ino(header.node);
        let from = From::new(header.unique, (header.uid, header.gid, header.pid));
        let empty = move |reply: Reply| move |answer| reply.done(answer);
        let named =
            move |reply: Reply| move |found: Answer<Found>| reply.answer(found.map(|found| entry(&found)));
        let about = move |reply: Reply| {
            move |found: Answer<Found>| reply.answer(found.map(|found| attributes(&found)))
        };
        let opened =
            move |reply: Reply| move |made: Answer<Created>| reply.answer(made.map(|made| created(&made)));
        match operation {
            Operation::Lookup { name } => {
                all.lookup((node, name), named(reply));
            }
            Operation::Forget { nlookup } => {
                all.fs.forget(node, nlookup);
                reply.none();
            }
            Operation::BatchForget(forgets) => {
                forgets.for_each(|(node, nlookup)| all.fs.forget(Ino(node), nlookup));
                reply.none();
            }
            Operation::Getattr { .. } => {
                all.getattr(node, about(reply));
            }
            Operation::Statx { .. } => {
                all.getattr(node, |found| reply.answer(found.map(|found| statx(&found))));
            }
            Operation::Setattr(set) => all.setattr(node, set_attr(&set), from, about(reply)),
            Operation::Readlink => reply.answer(all.readlink(node)),
            Operation::Symlink { name, target, .. } => {
                let kind = Some(FileKind::Symlink);
                all.make((node, name), kind, (0o777, 0, 0), from, target, named(reply));
            }
            Operation::Mknod { name, mode, rdev, umask, .. } => {
                let bits = (mode & 0o7777, umask, rdev);
                all.make((node, name), kind_of_mode(mode), bits, from, b"", named(reply));
            }
            Operation::Mkdir { name, mode, umask, .. } => {
                let bits = (mode & 0o7777, umask, 0);
                all.make((node, name), Some(FileKind::Dir), bits, from, b"", named(reply));
            }
            Operation::Unlink { name } => all.unlink((node, name), from, empty(reply)),
            Operation::Rmdir { name } => all.rmdir((node, name), from, empty(reply)),
            Operation::Rename { name, new_dir, new_name, flags } => {
                all.rename((node, name), (Ino(new_dir), new_name), flags, from, empty(reply));
            }
            Operation::Link { node: linked, name } => {
                all.link(Ino(linked), (node, name), from, named(reply));
            }
            Operation::Open { flags, .. } => {
                all.open(node, flags, from, Opening { reply, channels: Weak::clone(&self.channels) });
            }
            Operation::Create { name, flags, mode, umask, .. } => {
                all.create((node, name), (mode, umask), flags, from, opened(reply));
            }
            Operation::Tmpfile { flags, mode, umask, .. } => {
                all.tmpfile(node, (mode, umask), flags, from, opened(reply));
            }
            Operation::Read { fh, off, size, lock_owner, .. } => {
                // The kernel names an owner where a program's read comes as it is.
                all.read((node, fh), (off, size), lock_owner.is_none(), from, reply);
            }
            Operation::Write { off, data, flags, cache, kill_suidgid, .. } => {
                let write = Write { off, data, flags, mapped: cache, kill: kill_suidgid };
                all.write(node, write, from, |written| reply.answer(written.map(encode::write)));
            }
            Operation::Statfs => reply.answer(all.statfs().map(|found| space(&found))),
            Operation::Release { fh, .. } => reply.done(all.release(fh)),
            Operation::Fsync { fh, .. } => all.fsync(node, fh, from, empty(reply)),
            Operation::Setxattr { name, value, flags, .. } => {
                all.setxattr(node, (name, value), flags, from, empty(reply));
            }
            Operation::Getxattr { name, size } => value(reply, all.getxattr(node, name, size)),
            Operation::Listxattr { size } => value(reply, all.listxattr(node, size)),
            Operation::Removexattr { name } => all.removexattr(node, name, from, empty(reply)),
            Operation::Flush { fh, lock_owner } => reply.done(all.flush(node, fh, lock_owner, from)),
            Operation::Opendir { .. } => reply.bytes(encode::open(0, 0, 0)),
            Operation::Readdir { off, size, plus: false, .. } => {
                all.readdir(node, off, names::<false>(reply, size));
            }
            Operation::Readdir { off, size, plus: true, .. } => {
                all.readdir(node, off, names::<true>(reply, size));
            }
            Operation::Releasedir { .. } | Operation::Destroy => reply.done(Ok(())),
            Operation::Fsyncdir { .. } => all.fsyncdir(node, empty(reply)),
            Operation::Getlk(wanted) => reply.answer(all.getlk(node, asked(&wanted)).map(lock)),
            Operation::Setlk { lock, wait } => {
                all.setlk((node, lock.fh), asked(&lock), wait, from, empty(reply));
            }
            Operation::Interrupt { unique } => {
                reply.none();
                self.interrupt(unique);
            }
            Operation::Fallocate { off, len, mode, .. } => {
                all.fallocate(node, (off, len), mode, from, empty(reply));
            }
            Operation::Lseek { off, whence, .. } => all.lseek(node, off, whence, |found| {
                reply.answer(found.map(|found| encode::lseek(found.cast_unsigned())));
            }),
            Operation::CopyFileRange { off_in, node_out, off_out, len, is_64, .. } => {
                let len = if is_64 { len } else { len.min(COPY_MAX) };
                all.copy((node, off_in), (Ino(node_out), off_out), len, from, move |copied| {
                    reply.answer(
                        copied.map(|len| if is_64 { encode::copied(len) } else { encode::write(len as u32) }),
                    );
                });
            }
            // The kernel does without, and does not ask again.
            Operation::Access { .. }
            | Operation::Bmap { .. }
            | Operation::Ioctl { .. }
            | Operation::Poll { .. }
            | Operation::NotifyReply { .. }
            | Operation::SyncFs
            | Operation::Unknown(_) => reply.error(libc::ENOSYS),
        }
    }

    /// A signal for who asked.
    pub(super) fn interrupt(&self, unique: u64) {
        self.requests.interrupt(unique);
        if let Some(channels) = self.channels.upgrade() {
            channels.interrupt(unique);
        }
        self.pool.interrupt(unique);
    }
}
