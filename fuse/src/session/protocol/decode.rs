//! From bytes to an [`Operation`]. The structures are those of linux/fuse.h, field by field.

use super::cursor::{Cursor, Fault, Malformed};
use super::extension;
use super::init::{Agreed, flag};
use super::operation::{Forgets, Lock, Operation, Setattr, TimeSet};
use super::request::{Header, args_bytes, opcode};

const GETATTR_FH: u32 = 1 << 0;
const OPEN_KILL_SUIDGID: u32 = 1 << 0;
const READ_LOCKOWNER: u32 = 1 << 1;
const WRITE_CACHE: u32 = 1 << 0;
const WRITE_LOCKOWNER: u32 = 1 << 1;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const RELEASE_FLUSH: u32 = 1 << 0;
const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
const FSYNC_FDATASYNC: u32 = 1 << 0;
const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
const LK_FLOCK: u32 = 1 << 0;
const NANOS: u32 = 1_000_000_000;

mod fattr {
    //! What of SETATTR is meant.

    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const FH: u32 = 1 << 6;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const LOCKOWNER: u32 = 1 << 9;
    pub(super) const CTIME: u32 = 1 << 10;
    pub(super) const KILL_SUIDGID: u32 = 1 << 11;
}

type Decoded<'a> = Result<Operation<'a>, Malformed>;

/// The request of `header`. `args` may be longer than its structure, as io_uring's always are; `payload` is
/// exactly what was sent.
///
/// # Errors
/// When they are no such request.
pub(crate) fn decode<'a>(header: &Header, args: &'a [u8], payload: &'a [u8], agreed: &Agreed) -> Decoded<'a> {
    let args = args.get(..args_bytes(header.opcode, agreed));
    let args = args.ok_or(Malformed::new("arguments", Fault::Short))?;
    let (payload, group) = extension::cut(payload, header.extensions)?;
    let mut request =
        Request { args: Cursor::new(args, "arguments"), payload: Cursor::new(payload, "payload"), group };
    let operation = request.operation(header.opcode, agreed)?;
    request.payload.end()?;
    Ok(operation)
}

struct Request<'a> {
    args: Cursor<'a>,
    payload: Cursor<'a>,
    group: Option<u32>,
}

impl<'a> Request<'a> {
    fn operation(&mut self, op: u32, agreed: &Agreed) -> Decoded<'a> {
        Ok(match op {
            opcode::LOOKUP => Operation::Lookup { name: self.payload.name()? },
            opcode::FORGET => Operation::Forget { nlookup: self.args.u64()? },
            opcode::BATCH_FORGET => self.batch_forget()?,
            opcode::GETATTR => Operation::Getattr { fh: self.optional_handle()?.1 },
            opcode::SETATTR => self.setattr()?,
            opcode::READLINK => Operation::Readlink,
            opcode::SYMLINK => Operation::Symlink {
                name: self.payload.name()?,
                target: self.payload.name()?,
                group: self.group,
            },
            opcode::MKNOD => self.mknod()?,
            opcode::MKDIR => self.mkdir()?,
            opcode::UNLINK => Operation::Unlink { name: self.payload.name()? },
            opcode::RMDIR => Operation::Rmdir { name: self.payload.name()? },
            opcode::RENAME => self.rename(false)?,
            opcode::RENAME2 => self.rename(true)?,
            opcode::LINK => Operation::Link { node: self.args.u64()?, name: self.payload.name()? },
            opcode::OPEN => {
                let (flags, kill_suidgid) = self.open()?;
                Operation::Open { flags, kill_suidgid }
            }
            opcode::OPENDIR => Operation::Opendir { flags: self.args.i32()? },
            opcode::READ => self.read()?,
            opcode::READDIR => self.readdir(false)?,
            opcode::READDIRPLUS => self.readdir(true)?,
            opcode::WRITE => self.write()?,
            opcode::STATFS => Operation::Statfs,
            opcode::RELEASE => self.release()?,
            opcode::RELEASEDIR => Operation::Releasedir { fh: self.args.u64()? },
            opcode::FSYNC => {
                let (fh, datasync) = self.fsync()?;
                Operation::Fsync { fh, datasync }
            }
            opcode::FSYNCDIR => {
                let (fh, datasync) = self.fsync()?;
                Operation::Fsyncdir { fh, datasync }
            }
            opcode::SETXATTR => self.setxattr(agreed.has(flag::SETXATTR_EXT))?,
            opcode::GETXATTR => Operation::Getxattr { size: self.args.u32()?, name: self.payload.name()? },
            opcode::LISTXATTR => Operation::Listxattr { size: self.args.u32()? },
            opcode::REMOVEXATTR => Operation::Removexattr { name: self.payload.name()? },
            opcode::FLUSH => self.flush()?,
            opcode::GETLK => Operation::Getlk(self.lock()?),
            opcode::SETLK => Operation::Setlk { lock: self.lock()?, wait: false },
            opcode::SETLKW => Operation::Setlk { lock: self.lock()?, wait: true },
            opcode::ACCESS => Operation::Access { mask: self.args.u32()? },
            opcode::CREATE => self.create()?,
            opcode::TMPFILE => self.tmpfile()?,
            opcode::INTERRUPT => Operation::Interrupt { unique: self.args.u64()? },
            opcode::BMAP => Operation::Bmap { block: self.args.u64()?, block_bytes: self.args.u32()? },
            opcode::DESTROY => Operation::Destroy,
            opcode::IOCTL => self.ioctl()?,
            opcode::POLL => self.poll()?,
            opcode::NOTIFY_REPLY => self.notify_reply()?,
            opcode::FALLOCATE => self.fallocate()?,
            opcode::LSEEK => {
                Operation::Lseek { fh: self.args.u64()?, off: self.args.i64()?, whence: self.args.i32()? }
            }
            opcode::COPY_FILE_RANGE => self.copy(false)?,
            opcode::COPY_FILE_RANGE_64 => self.copy(true)?,
            opcode::SYNCFS => Operation::SyncFs,
            opcode::STATX => self.statx()?,
            other => {
                self.payload.rest();
                Operation::Unknown(other)
            }
        })
    }

    fn batch_forget(&mut self) -> Decoded<'a> {
        let count = self.args.u32()?;
        let (forgets, odd) = self.payload.rest().as_chunks();
        if !odd.is_empty() || forgets.len() as u64 != u64::from(count) {
            return Err(Malformed::new("list of forgets", Fault::Range));
        }
        Ok(Operation::BatchForget(Forgets(forgets)))
    }

    /// Flags, and the open file that they say is there.
    fn optional_handle(&mut self) -> Result<(u32, Option<u64>), Malformed> {
        let flags = self.args.u32()?;
        self.args.skip::<4>()?;
        let fh = self.args.u64()?;
        Ok((flags, (flags & GETATTR_FH != 0).then_some(fh)))
    }

    fn setattr(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        let valid = args.u32()?;
        args.skip::<4>()?;
        let (fh, size, lock_owner) = (args.u64()?, args.u64()?, args.u64()?);
        let seconds = [args.i64()?, args.i64()?, args.i64()?];
        let nanos = [args.u32()?, args.u32()?, args.u32()?];
        let mode = args.u32()?;
        args.skip::<4>()?;
        let (uid, gid) = (args.u32()?, args.u32()?);
        let has = |bit: u32| valid & bit != 0;
        let time = |which: usize, bit: u32, now: u32| match (has(bit), has(now)) {
            (false, _) => Ok(None),
            (true, true) => Ok(Some(TimeSet::Now)),
            (true, false) if nanos[which] >= NANOS => Err(Malformed::new("time", Fault::Range)),
            (true, false) => Ok(Some(TimeSet::At(seconds[which], nanos[which]))),
        };
        let ctime = match time(2, fattr::CTIME, 0)? {
            Some(TimeSet::At(seconds, nanos)) => Some((seconds, nanos)),
            _ => None,
        };
        Ok(Operation::Setattr(Setattr {
            mode: has(fattr::MODE).then_some(mode),
            uid: has(fattr::UID).then_some(uid),
            gid: has(fattr::GID).then_some(gid),
            size: has(fattr::SIZE).then_some(size),
            atime: time(0, fattr::ATIME, fattr::ATIME_NOW)?,
            mtime: time(1, fattr::MTIME, fattr::MTIME_NOW)?,
            ctime,
            fh: has(fattr::FH).then_some(fh),
            lock_owner: has(fattr::LOCKOWNER).then_some(lock_owner),
            kill_suidgid: has(fattr::KILL_SUIDGID),
        }))
    }

    fn mknod(&mut self) -> Decoded<'a> {
        let (mode, rdev, umask) = (self.args.u32()?, self.args.u32()?, self.args.u32()?);
        Ok(Operation::Mknod { name: self.payload.name()?, mode, rdev, umask, group: self.group })
    }

    fn mkdir(&mut self) -> Decoded<'a> {
        let (mode, umask) = (self.args.u32()?, self.args.u32()?);
        Ok(Operation::Mkdir { name: self.payload.name()?, mode, umask, group: self.group })
    }

    fn rename(&mut self, has_flags: bool) -> Decoded<'a> {
        let new_dir = self.args.u64()?;
        let flags = if has_flags { self.args.u32()? } else { 0 };
        let (name, new_name) = (self.payload.name()?, self.payload.name()?);
        Ok(Operation::Rename { name, new_dir, new_name, flags })
    }

    fn open(&mut self) -> Result<(i32, bool), Malformed> {
        Ok((self.args.i32()?, self.args.u32()? & OPEN_KILL_SUIDGID != 0))
    }

    fn read(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        let (fh, off, size) = (args.u64()?, args.u64()?, args.u32()?);
        let (read_flags, owner, flags) = (args.u32()?, args.u64()?, args.i32()?);
        let lock_owner = (read_flags & READ_LOCKOWNER != 0).then_some(owner);
        Ok(Operation::Read { fh, off, size, lock_owner, flags })
    }

    fn readdir(&mut self, plus: bool) -> Decoded<'a> {
        let (fh, off, size) = (self.args.u64()?, self.args.u64()?, self.args.u32()?);
        Ok(Operation::Readdir { fh, off, size, plus })
    }

    fn write(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        let (fh, off, size) = (args.u64()?, args.u64()?, args.u32()?);
        let (write_flags, owner, flags) = (args.u32()?, args.u64()?, args.i32()?);
        Ok(Operation::Write {
            fh,
            off,
            data: self.payload.bytes(size as usize)?,
            lock_owner: (write_flags & WRITE_LOCKOWNER != 0).then_some(owner),
            cache: write_flags & WRITE_CACHE != 0,
            kill_suidgid: write_flags & WRITE_KILL_SUIDGID != 0,
            flags,
        })
    }

    fn release(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        let (fh, flags, release_flags, lock_owner) = (args.u64()?, args.i32()?, args.u32()?, args.u64()?);
        let flush = release_flags & RELEASE_FLUSH != 0;
        let flock_unlock = release_flags & RELEASE_FLOCK_UNLOCK != 0;
        Ok(Operation::Release { fh, flags, lock_owner, flush, flock_unlock })
    }

    fn fsync(&mut self) -> Result<(u64, bool), Malformed> {
        Ok((self.args.u64()?, self.args.u32()? & FSYNC_FDATASYNC != 0))
    }

    fn setxattr(&mut self, is_extended: bool) -> Decoded<'a> {
        let (size, flags) = (self.args.u32()?, self.args.i32()?);
        let more = if is_extended { self.args.u32()? } else { 0 };
        Ok(Operation::Setxattr {
            name: self.payload.name()?,
            value: self.payload.bytes(size as usize)?,
            flags,
            acl_kill_sgid: more & SETXATTR_ACL_KILL_SGID != 0,
        })
    }

    fn flush(&mut self) -> Decoded<'a> {
        let fh = self.args.u64()?;
        self.args.skip::<8>()?;
        Ok(Operation::Flush { fh, lock_owner: self.args.u64()? })
    }

    fn lock(&mut self) -> Result<Lock, Malformed> {
        let args = &mut self.args;
        Ok(Lock {
            fh: args.u64()?,
            owner: args.u64()?,
            start: args.u64()?,
            end: args.u64()?,
            kind: args.i32()?,
            pid: args.u32()?,
            flock: args.u32()? & LK_FLOCK != 0,
        })
    }

    /// The structure of CREATE and TMPFILE: flags, mode, umask, and whether setuid and setgid bits go.
    fn created(&mut self) -> Result<(i32, u32, u32, bool), Malformed> {
        let args = &mut self.args;
        Ok((args.i32()?, args.u32()?, args.u32()?, args.u32()? & OPEN_KILL_SUIDGID != 0))
    }

    fn create(&mut self) -> Decoded<'a> {
        let (flags, mode, umask, kill_suidgid) = self.created()?;
        let name = self.payload.name()?;
        Ok(Operation::Create { name, flags, mode, umask, kill_suidgid, group: self.group })
    }

    fn tmpfile(&mut self) -> Decoded<'a> {
        let (flags, mode, umask, kill_suidgid) = self.created()?;
        // The kernel's own word for a file without a name.
        self.payload.text()?;
        Ok(Operation::Tmpfile { flags, mode, umask, kill_suidgid, group: self.group })
    }

    fn ioctl(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        let (fh, flags, command, arg) = (args.u64()?, args.u32()?, args.u32()?, args.u64()?);
        let (in_size, out_size) = (args.u32()?, args.u32()?);
        let data = self.payload.bytes(in_size as usize)?;
        Ok(Operation::Ioctl { fh, flags, command, arg, data, out_size })
    }

    fn poll(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        Ok(Operation::Poll { fh: args.u64()?, kh: args.u64()?, flags: args.u32()?, events: args.u32()? })
    }

    fn notify_reply(&mut self) -> Decoded<'a> {
        let payload = &mut self.payload;
        payload.skip::<8>()?;
        let (off, size) = (payload.u64()?, payload.u32()?);
        payload.skip::<20>()?;
        Ok(Operation::NotifyReply { off, data: payload.bytes(size as usize)? })
    }

    fn fallocate(&mut self) -> Decoded<'a> {
        let args = &mut self.args;
        Ok(Operation::Fallocate { fh: args.u64()?, off: args.u64()?, len: args.u64()?, mode: args.i32()? })
    }

    fn copy(&mut self, is_64: bool) -> Decoded<'a> {
        let args = &mut self.args;
        Ok(Operation::CopyFileRange {
            fh_in: args.u64()?,
            off_in: args.u64()?,
            node_out: args.u64()?,
            fh_out: args.u64()?,
            off_out: args.u64()?,
            len: args.u64()?,
            flags: args.u64()?,
            is_64,
        })
    }

    fn statx(&mut self) -> Decoded<'a> {
        let (flags, fh) = self.optional_handle()?;
        Ok(Operation::Statx { flags, fh, sx_flags: self.args.u32()?, mask: self.args.u32()? })
    }
}
