//! What the kernel asks, in our words: each request becomes calls of [`Fs`] under the leases that it needs, by whatever
//! session it came. An answer is given at once, or later by another thread.

mod answer;
mod names;
mod overdue;

use std::io;
use std::sync::Arc;
use std::thread;

use kos_types::lease::{Holds, Mode, Span, Want};
use kos_types::{Consistency, Cred, Error, Fabric, FileLock, Ino, Kind, LockKind, SetAttr, XattrMode};

pub(crate) use self::answer::{Answer, Fill, Found, Listing, Open, Reply, Space, Value, kind_of_mode};
use self::answer::{attributes, errno, listing, locked, plain, sized, value};
pub(crate) use self::names::Created;
use self::overdue::{Overdue, Watched};
use crate::control;
use crate::fs::{Allocate, Fs};
use crate::jobs::Caller;
use crate::leases::{Touched, may_change, whole};
use crate::once;
use crate::seal::SEAL;
use crate::signals::Waiter;

/// The requests of one mount.
pub(crate) struct Requests<F> {
    pub(crate) fs: Arc<Fs<F>>,
    overdue: Overdue,
}

/// Whose request it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From {
    /// The kernel's number of it.
    pub(crate) unique: u64,
    pub(crate) caller: Caller,
}

impl From {
    pub(crate) const fn new(unique: u64, (uid, gid, pid): (u32, u32, u32)) -> Self {
        Self { unique, caller: Caller { cred: Cred { uid, gid }, pid } }
    }

    const fn waiter(self) -> Waiter {
        Waiter { request: self.unique, thread: self.caller.pid }
    }

    const fn uid(self) -> u32 {
        self.caller.cred.uid
    }
}

/// A write as it was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write<'a> {
    pub(crate) off: u64,
    pub(crate) data: &'a [u8],
    /// The descriptor's flags as they are now, after any fcntl(2).
    pub(crate) flags: i32,
    /// It is pages of a mapping. They come through whichever descriptor may write, and belong where they are.
    pub(crate) mapped: bool,
    /// setuid and setgid go.
    pub(crate) kill: bool,
}

/// A lock as it was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lock {
    pub(crate) owner: u64,
    pub(crate) start: u64,
    /// The last byte.
    pub(crate) last: u64,
    /// fcntl(2)'s `F_RDLCK` and others.
    pub(crate) kind: i32,
    pub(crate) pid: u32,
    /// One of flock(2).
    pub(crate) flock: bool,
}

impl Lock {
    fn wanted(&self) -> Option<FileLock> {
        let kind = match self.kind {
            libc::F_RDLCK => Some(LockKind::Read),
            libc::F_WRLCK => Some(LockKind::Write),
            libc::F_UNLCK => None,
            _ => return None,
        };
        let end = self.last.saturating_add(1);
        Some(FileLock { owner: self.owner, kind, start: self.start, end, pid: self.pid, flock: self.flock })
    }
}

impl<F: Fabric + 'static> Requests<F> {
    /// `give_up` tells the kernel `ETIMEDOUT` in a request's place; `NotFound` when it has an answer. `look` is called
    /// each second.
    pub(crate) fn new(
        fs: Arc<Fs<F>>,
        give_up: impl Fn(u64) -> io::Result<()> + Send + 'static,
        look: impl Fn() + Send + 'static,
    ) -> Self {
        Self { fs, overdue: Overdue::new(give_up, look) }
    }

    /// What is done in this call may be held up by a disk.
    fn watch(&self, from: From) -> Watched {
        self.overdue.watch(from.unique)
    }

    /// What is done in this call must not be done twice, if this process is killed and the kernel asks the next one.
    fn once(&self, from: From) -> once::Request {
        self.fs.once(from.unique)
    }

    /// The same of one that opens: what it opened before, and the kernel never heard of, is closed.
    fn opens(&self, from: From) -> once::Request {
        self.fs.forget_opened(from.unique);
        self.once(from)
    }

    /// Who made a request has a signal: it waits no more for what others do.
    pub(crate) fn interrupt(&self, request: u64) {
        self.fs.signals.tell(request);
        self.fs.locks.interrupt(&*self.fs.fabric, request);
        self.fs.jobs.waiters.interrupt(request);
    }

    pub(crate) fn getattr(&self, node: Ino, reply: impl Reply<Found>) {
        if self.fs.keeps(node) && self.fs.alone().is_none() {
            return self.fs.ask(vec![Want::names(node, Mode::Shared)], move |fs, leased| {
                reply(attributes(fs, leased.and_then(|()| fs.kept_or_asked(node))));
            });
        }
        let want = || vec![whole(node, Mode::Shared)];
        self.fs.under(want, move |fs, leased| {
            sized(fs, attributes(fs, leased.and_then(|()| fs.attr(node))), reply);
        });
    }

    /// `set` says whether setuid and setgid go.
    pub(crate) fn setattr(&self, node: Ino, set: SetAttr, from: From, reply: impl Reply<Found>) {
        let (held_up, resizes) = (self.watch(from), set.size.is_some());
        let run = move |fs: &Arc<Fs<F>>, leased: Result<(), Error>| {
            let _held_up = held_up;
            reply(attributes(fs, leased.and_then(|()| fs.set_attr(node, set))));
        };
        if let Some(_alone) = self.fs.alone() {
            return run(&self.fs, Ok(()));
        }
        let mut wants = vec![whole(node, Mode::Exclusive)];
        let holds = if resizes {
            // The kernel writes no page back until it has its answer. Two mounts that both set a size, each with changed pages
            // that the other one wants, would wait for each other; the errno has programs try again.
            Holds::Several(Span::ALL)
        } else {
            // It may be a directory.
            wants.push(Want::names(node, Mode::Exclusive));
            Holds::Nothing
        };
        self.fs.ask_for(wants, holds, None, move |fs, leased| {
            let again = |e: Error| match e.kind() {
                Kind::Busy if resizes => Error::new(Kind::Interrupted, "size: another mount sets it too"),
                _ => e,
            };
            run(fs, leased.map_err(again));
        });
    }

    pub(crate) fn readlink(&self, node: Ino) -> Answer<Vec<u8>> {
        plain(self.fs.readlink(node))
    }

    /// `flags` are open(2)'s.
    pub(crate) fn open(&self, node: Ino, flags: i32, from: From, reply: impl Open) {
        let once = self.opens(from);
        let consistency = match self.fs.consistency_of(node) {
            Ok(consistency) => consistency,
            Err(e) => return reply.opened(Err(errno(&e))),
        };
        // From here on its pages may be changed without a word.
        let asks = may_change(flags) && consistency == Consistency::Strong;
        let want = || asks.then(|| whole(node, Mode::Exclusive)).into_iter().collect();
        self.fs.under(want, move |fs, leased| {
            let (how, _doing) = ((flags, consistency), once.doing());
            let opened = leased.and_then(|()| fs.open(node, how, &|copy| reply.register(copy)));
            reply.opened(plain(opened));
        });
    }

    /// `pages`: the kernel fills pages of its cache with it, and holds them until it has its answer.
    pub(crate) fn read(
        &self,
        (node, handle): (Ino, u64),
        (off, len): (u64, u32),
        pages: bool,
        from: From,
        reply: impl Fill,
    ) {
        if self.fs.is_wait(node) {
            let deliver = move |text: Result<Vec<u8>, Error>| {
                reply.fill(len as usize, |out| {
                    let text = plain(text)?;
                    let len = text.len().min(out.len());
                    out[..len].copy_from_slice(&text[..len]);
                    Ok(len)
                });
            };
            return self.fs.wait(node, from.waiter(), off, Box::new(deliver));
        }
        let answer = move |fs: &Fs<F>, leased: Result<(), Error>| {
            reply.fill(len as usize, |out| {
                let wanted = out.len();
                let read = plain(leased.and_then(|()| fs.read(node, handle, off, out)))?;
                if read < wanted {
                    // The kernel takes that for the file's end.
                    fs.known.sized(node, off + read as u64);
                }
                Ok(read)
            });
        };
        if let Some(_alone) = self.fs.alone() {
            return answer(&self.fs, Ok(()));
        }
        let touched = Touched { range: (off, len.into()), pages };
        self.fs.read_under(node, touched, move |fs, leased| answer(fs, leased));
    }

    /// Answers the bytes written: all of them.
    pub(crate) fn write(&self, node: Ino, write: Write<'_>, from: From, reply: impl Reply<u32>) {
        let held_up = self.watch(from);
        let Write { off, data, flags, mapped, kill } = write;
        let at = (flags & libc::O_APPEND == 0 || mapped).then_some(off);
        // A request holds at most a megabyte.
        let len = data.len() as u32;
        let once = at.is_none().then(|| self.once(from));
        if let Some(_alone) = self.fs.alone() {
            let _doing = once.as_ref().map(once::Request::doing);
            return reply(plain(self.fs.write(node, at, data, kill)).map(|_| len));
        }
        if mapped {
            return reply(plain(self.fs.write_back(node, off, data, kill)).map(|_| len));
        }
        let (data, range) = (data.to_vec(), (off, u64::from(len)));
        self.fs.write_under(node, (at, range.1), range, move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.as_ref().map(once::Request::doing));
            let result = leased.and_then(|()| fs.write(node, at, &data, kill));
            let landed = *result.as_ref().unwrap_or(&off);
            reply(plain(result).map(|_| len));
            fs.landed(node, range, landed);
        });
    }

    pub(crate) fn flush(&self, node: Ino, handle: u64, owner: u64, from: From) -> Answer<()> {
        let _held_up = self.watch(from);
        let closed = self.fs.closing(node, handle);
        let unlocked = self.fs.locks.closed(&*self.fs.fabric, node, owner);
        plain(closed.and(unlocked))
    }

    /// Answers who holds it; nobody by `F_UNLCK`.
    pub(crate) fn getlk(&self, node: Ino, lock: Lock) -> Answer<Lock> {
        let wanted = lock.wanted().ok_or(libc::EINVAL)?;
        let held = plain(self.fs.fabric.test_lock(node, &wanted))?;
        Ok(held.map_or(Lock { kind: libc::F_UNLCK, pid: 0, ..lock }, |held| Lock {
            owner: held.owner,
            start: held.start,
            last: held.end - 1,
            kind: if held.kind == Some(LockKind::Read) { libc::F_RDLCK } else { libc::F_WRLCK },
            pid: held.pid,
            flock: held.flock,
        }))
    }

    /// `sleep`: it is waited for.
    pub(crate) fn setlk(
        &self,
        (node, handle): (Ino, u64),
        lock: Lock,
        sleep: bool,
        from: From,
        reply: impl Reply<()>,
    ) {
        let Some(wanted) = lock.wanted() else { return reply(Err(libc::EINVAL)) };
        if wanted.kind.is_some() {
            let fs = Arc::clone(&self.fs);
            let tell = move |answer| fs.acquire_from_others(node, answer, |answer| reply(locked(answer)));
            let deliver = Box::new(tell);
            return self.fs.locks.wait(
                &*self.fs.fabric,
                (node, handle),
                (wanted, sleep),
                from.waiter(),
                deliver,
            );
        }
        // What fails is told at fsync or close; the lock goes all the same.
        drop(self.fs.release_to_others(node));
        reply(locked(self.fs.locks.give_back(&*self.fs.fabric, (node, handle), &wanted)));
    }

    pub(crate) fn release(&self, handle: u64) -> Answer<()> {
        self.fs.release(handle);
        plain(self.fs.locks.released(&*self.fs.fabric, handle))
    }

    pub(crate) fn fsync(&self, node: Ino, handle: u64, from: From, reply: impl Reply<()>) {
        let held_up = self.watch(from);
        // Also of what was written through other mounts.
        let want = || vec![whole(node, Mode::Shared)];
        self.fs.under(want, move |fs, leased| {
            let _held_up = held_up;
            reply(plain(leased.and_then(|()| fs.fsync(node, handle))));
        });
    }

    pub(crate) fn fsyncdir(&self, node: Ino, reply: impl Reply<()>) {
        if control::owns(node) {
            let fs = Arc::clone(&self.fs);
            // Without a thread nobody answers: EIO.
            let flush = move || reply(plain(fs.fsync_dir(node)));
            drop(thread::Builder::new().name("sync".into()).spawn(flush));
            return;
        }
        reply(plain(self.fs.fsync_dir(node)));
    }

    /// Entries behind position `after`.
    pub(crate) fn readdir<L: Listing>(&self, dir: Ino, after: u64, reply: L) {
        let alone = self.fs.alone();
        if alone.is_some() || !L::LOOKS_UP {
            return listing(&self.fs, reply, dir, after, None);
        }
        match self.fs.wants_of_listing(dir, after) {
            Ok(wants) => {
                let files = wants.iter().map(|want| want.ino).collect();
                self.fs.ask(wants, move |fs, leased| match leased {
                    Ok(()) => listing(fs, reply, dir, after, Some(files)),
                    Err(e) => reply.done(Err(errno(&e))),
                });
            }
            Err(e) => reply.done(Err(errno(&e))),
        }
    }

    pub(crate) fn statfs(&self) -> Answer<Space> {
        let usage = plain(self.fs.usage())?;
        let block = u64::from(Space::BLOCK_BYTES);
        let (blocks, free) = (usage.bytes_total / block, usage.bytes_free / block);
        // Inodes are limited by space alone.
        Ok(Space { blocks, blocks_free: free, files: usage.inodes_used + free, files_free: free })
    }

    /// `flags` are setxattr(2)'s.
    pub(crate) fn setxattr(
        &self,
        node: Ino,
        (name, value): (&[u8], &[u8]),
        flags: i32,
        from: From,
        reply: impl Reply<()>,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply(Err(libc::EINVAL)),
        };
        let (held_up, once) = (self.watch(from), self.once(from));
        let (name, value) = (name.to_vec(), value.to_vec());
        // It may be a directory, whose mode an access list changes. What is sealed is also what was written through
        // other mounts.
        let mut want = vec![Want::names(node, Mode::Exclusive)];
        want.extend((name == SEAL).then(|| whole(node, Mode::Exclusive)));
        self.fs.under(
            || want,
            move |fs, leased| {
                let (_held_up, _doing) = (held_up, once.doing());
                let set = |()| fs.set_xattr(node, &name, (&value, mode), from.uid());
                reply(plain(leased.and_then(set)));
            },
        );
    }

    /// `size` is the room for it.
    pub(crate) fn getxattr(&self, node: Ino, name: &[u8], size: u32) -> Answer<Value> {
        value(size, self.fs.xattr(node, name))
    }

    pub(crate) fn listxattr(&self, node: Ino, size: u32) -> Answer<Value> {
        let names = self.fs.xattrs(node);
        let ended = |name: Vec<u8>| name.into_iter().chain([0]);
        value(size, names.map(|names| names.into_iter().flat_map(ended).collect()))
    }

    pub(crate) fn removexattr(&self, node: Ino, name: &[u8], from: From, reply: impl Reply<()>) {
        let (held_up, once, name) = (self.watch(from), self.once(from), name.to_vec());
        let want = || vec![Want::names(node, Mode::Exclusive)];
        self.fs.under(want, move |fs, leased| {
            let (_held_up, _doing) = (held_up, once.doing());
            reply(plain(leased.and_then(|()| fs.remove_xattr(node, &name, from.uid()))));
        });
    }

    /// `mode` is fallocate(2)'s.
    pub(crate) fn fallocate(
        &self,
        node: Ino,
        (off, len): (u64, u64),
        mode: i32,
        from: From,
        reply: impl Reply<()>,
    ) {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let mode = match mode {
            0 => Allocate::Extend,
            libc::FALLOC_FL_KEEP_SIZE => Allocate::Reserve,
            PUNCH => Allocate::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero(false),
            ZERO_KEEP => Allocate::Zero(true),
            _ => return reply(Err(libc::EOPNOTSUPP)),
        };
        let held_up = self.watch(from);
        let want = || vec![whole(node, Mode::Exclusive)];
        self.fs.under(want, move |fs, leased| {
            let _held_up = held_up;
            reply(plain(leased.and_then(|()| fs.allocate(node, off, len, mode, from.uid()))));
        });
    }

    /// `whence` is lseek(2)'s, of data or holes.
    pub(crate) fn lseek(&self, node: Ino, off: i64, whence: i32, reply: impl Reply<i64>) {
        let Ok(off) = u64::try_from(off) else { return reply(Err(libc::ENXIO)) };
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply(Err(libc::EINVAL)),
        };
        let want = || vec![whole(node, Mode::Shared)];
        self.fs.under(want, move |fs, leased| {
            let found = plain(leased.and_then(|()| fs.seek(node, off, data)));
            // Files end at i64::MAX.
            reply(found.and_then(|found| found.map(u64::cast_signed).ok_or(libc::ENXIO)));
        });
    }

    /// Answers the bytes copied.
    pub(crate) fn copy(
        &self,
        source: (Ino, u64),
        target: (Ino, u64),
        len: u64,
        from: From,
        reply: impl Reply<u64>,
    ) {
        let held_up = self.watch(from);
        let mode = if source.0 == target.0 { Mode::Exclusive } else { Mode::Shared };
        let want = || vec![whole(source.0, mode), whole(target.0, Mode::Exclusive)];
        self.fs.under(want, move |fs, leased| {
            let _held_up = held_up;
            reply(plain(leased.and_then(|()| fs.copy(source, target, len, from.uid()))));
        });
    }
}
