//! One request of each kind, in which every field differs.

use super::super::{Agreed, Forgets, Lock, Operation, Setattr, TimeSet, flag, opcode};
use super::{Bytes, NEWEST, OLDEST};

pub(super) struct Sample {
    pub(super) opcode: u32,
    pub(super) agreed: Agreed,
    pub(super) args: Vec<u8>,
    pub(super) payload: Vec<u8>,
    /// Bytes of the payload.
    pub(super) extensions: u32,
    pub(super) is: Operation<'static>,
}

fn new(opcode: u32, args: Bytes, payload: &[u8], is: Operation<'static>) -> Sample {
    Sample { opcode, agreed: NEWEST, args: args.0, payload: payload.to_vec(), extensions: 0, is }
}

fn none() -> Bytes {
    Bytes::default()
}

/// A security context, and the group 4242.
fn extended(mut sample: Sample) -> Sample {
    let context = none().u32(24).u32(1).u32(3).u32(0).raw(b"s.x\0abc\0");
    let group = context.u32(16).u32(32).u32(1).u32(4242).0;
    sample.extensions = group.len() as u32;
    sample.payload.extend(group);
    sample
}

pub(super) fn all() -> Vec<Sample> {
    [names(), made(), attributes(), files(), data(), locks_and_rest()].into_iter().flatten().collect()
}

fn names() -> Vec<Sample> {
    let rename = |flags| Operation::Rename { name: b"from", new_dir: 9, new_name: b"to", flags };
    vec![
        new(opcode::LOOKUP, none(), b"name\0", Operation::Lookup { name: b"name" }),
        new(opcode::FORGET, none().u64(3), b"", Operation::Forget { nlookup: 3 }),
        new(
            opcode::BATCH_FORGET,
            none().u32(2).u32(0),
            &[[1; 16], [2; 16]].concat(),
            Operation::BatchForget(Forgets(&[[1; 16], [2; 16]])),
        ),
        new(opcode::READLINK, none(), b"", Operation::Readlink),
        new(opcode::UNLINK, none(), b"name\0", Operation::Unlink { name: b"name" }),
        new(opcode::RMDIR, none(), b"name\0", Operation::Rmdir { name: b"name" }),
        new(opcode::RENAME, none().u64(9), b"from\0to\0", rename(0)),
        new(opcode::RENAME2, none().u64(9).u32(2).u32(0), b"from\0to\0", rename(2)),
        new(opcode::LINK, none().u64(9), b"name\0", Operation::Link { node: 9, name: b"name" }),
        new(opcode::ACCESS, none().u32(4).u32(0), b"", Operation::Access { mask: 4 }),
    ]
}

fn made() -> Vec<Sample> {
    let symlink = |group| Operation::Symlink { name: b"name", target: b"to/it", group };
    let mknod = |group| Operation::Mknod { name: b"n", mode: 0o10_644, rdev: 7, umask: 0o22, group };
    let mkdir = |group| Operation::Mkdir { name: b"n", mode: 0o755, umask: 0o27, group };
    let create = |group| Operation::Create {
        name: b"n",
        flags: 0o102,
        mode: 0o644,
        umask: 0o22,
        kill_suidgid: true,
        group,
    };
    let tmpfile =
        |group| Operation::Tmpfile { flags: 2, mode: 0o600, umask: 0o77, kill_suidgid: false, group };
    let of = |group: Option<u32>| {
        let created = none().u32(0o102).u32(0o644).u32(0o22).u32(1);
        let unnamed = none().u32(2).u32(0o600).u32(0o77).u32(0);
        [
            new(opcode::SYMLINK, none(), b"name\0to/it\0", symlink(group)),
            new(opcode::MKNOD, none().u32(0o10_644).u32(7).u32(0o22).u32(0), b"n\0", mknod(group)),
            new(opcode::MKDIR, none().u32(0o755).u32(0o27), b"n\0", mkdir(group)),
            new(opcode::CREATE, created, b"n\0", create(group)),
            new(opcode::TMPFILE, unnamed, b"/\0", tmpfile(group)),
        ]
    };
    of(None).into_iter().chain(of(Some(4242)).map(extended)).collect()
}

fn attributes() -> Vec<Sample> {
    let setattr = |valid: u32| {
        let fixed = none().u32(valid).u32(0).u64(5).u64(4096).u64(66).u64(-7_i64 as u64).u64(8).u64(9);
        fixed.u32(71).u32(81).u32(91).u32(0o640).u32(0).u32(1).u32(2).u32(0)
    };
    let all = Setattr {
        mode: Some(0o640),
        uid: Some(1),
        gid: Some(2),
        size: Some(4096),
        atime: Some(TimeSet::At(-7, 71)),
        mtime: Some(TimeSet::At(8, 81)),
        ctime: Some((9, 91)),
        fh: Some(5),
        lock_owner: Some(66),
        kill_suidgid: true,
    };
    let now = Setattr { atime: Some(TimeSet::Now), mtime: Some(TimeSet::Now), ..all };
    let xattr =
        |acl_kill_sgid| Operation::Setxattr { name: b"user.a", value: b"v\0w", flags: 1, acl_kill_sgid };
    let statx = |flags, fh| Operation::Statx { flags, fh, sx_flags: 0x2000, mask: 0xfff };
    let short = Sample {
        agreed: OLDEST,
        ..new(opcode::SETXATTR, none().u32(3).u32(1), b"user.a\0v\0w", xattr(false))
    };
    vec![
        new(opcode::GETATTR, none().u32(0).u32(0).u64(5), b"", Operation::Getattr { fh: None }),
        new(opcode::GETATTR, none().u32(1).u32(0).u64(5), b"", Operation::Getattr { fh: Some(5) }),
        new(opcode::STATX, none().u32(0).u32(0).u64(5).u32(0x2000).u32(0xfff), b"", statx(0, None)),
        new(opcode::STATX, none().u32(1).u32(0).u64(5).u32(0x2000).u32(0xfff), b"", statx(1, Some(5))),
        new(opcode::SETATTR, setattr(0), b"", Operation::Setattr(Setattr::default())),
        new(opcode::SETATTR, setattr(0b1110_0111_1111), b"", Operation::Setattr(all)),
        new(opcode::SETATTR, setattr(0b1111_1111_1111), b"", Operation::Setattr(now)),
        short,
        new(opcode::SETXATTR, none().u32(3).u32(1).u32(1).u32(0), b"user.a\0v\0w", xattr(true)),
        new(
            opcode::GETXATTR,
            none().u32(64).u32(0),
            b"user.a\0",
            Operation::Getxattr { name: b"user.a", size: 64 },
        ),
        new(opcode::LISTXATTR, none().u32(64).u32(0), b"", Operation::Listxattr { size: 64 }),
        new(opcode::REMOVEXATTR, none(), b"user.a\0", Operation::Removexattr { name: b"user.a" }),
    ]
}

fn files() -> Vec<Sample> {
    let read = none().u64(5).u64(8192).u32(4096).u32(0).u64(66).u32(2).u32(0);
    let readdir = |plus| Operation::Readdir { fh: 5, off: 8192, size: 4096, plus };
    let release = |which: u32| none().u64(5).u32(2).u32(which).u64(66);
    let released =
        |flush, flock_unlock| Operation::Release { fh: 5, flags: 2, lock_owner: 66, flush, flock_unlock };
    let fsync = |which: u32| none().u64(5).u32(which).u32(0);
    vec![
        new(opcode::OPEN, none().u32(2).u32(0), b"", Operation::Open { flags: 2, kill_suidgid: false }),
        new(
            opcode::OPEN,
            none().u32(0o1002).u32(1),
            b"",
            Operation::Open { flags: 0o1002, kill_suidgid: true },
        ),
        new(opcode::OPENDIR, none().u32(0o200_000).u32(0), b"", Operation::Opendir { flags: 0o200_000 }),
        new(opcode::READDIR, read.clone(), b"", readdir(false)),
        new(opcode::READDIRPLUS, read, b"", readdir(true)),
        new(opcode::RELEASE, release(1), b"", released(true, false)),
        new(opcode::RELEASE, release(2), b"", released(false, true)),
        new(opcode::RELEASEDIR, release(0), b"", Operation::Releasedir { fh: 5 }),
        new(opcode::FSYNC, fsync(0), b"", Operation::Fsync { fh: 5, datasync: false }),
        new(opcode::FSYNCDIR, fsync(1), b"", Operation::Fsyncdir { fh: 5, datasync: true }),
        new(
            opcode::FLUSH,
            none().u64(5).u32(0).u32(0).u64(66),
            b"",
            Operation::Flush { fh: 5, lock_owner: 66 },
        ),
        new(opcode::STATFS, none(), b"", Operation::Statfs),
        new(opcode::SYNCFS, none().u64(0), b"", Operation::SyncFs),
        new(opcode::DESTROY, none(), b"", Operation::Destroy),
    ]
}

fn data() -> Vec<Sample> {
    let read = |which: u32| none().u64(5).u64(8192).u32(4).u32(which).u64(66).u32(2).u32(0);
    let reads = |lock_owner| Operation::Read { fh: 5, off: 8192, size: 4, lock_owner, flags: 2 };
    let writes = |lock_owner, cache, kill_suidgid| Operation::Write {
        fh: 5,
        off: 8192,
        data: b"d\0ta",
        lock_owner,
        cache,
        kill_suidgid,
        flags: 2,
    };
    let copy = none().u64(5).u64(10).u64(20).u64(30).u64(40).u64(1 << 40).u64(0);
    let copied = |is_64| Operation::CopyFileRange {
        fh_in: 5,
        off_in: 10,
        node_out: 20,
        fh_out: 30,
        off_out: 40,
        len: 1 << 40,
        flags: 0,
        is_64,
    };
    vec![
        new(opcode::READ, read(0), b"", reads(None)),
        new(opcode::READ, read(2), b"", reads(Some(66))),
        new(opcode::WRITE, read(0), b"d\0ta", writes(None, false, false)),
        new(opcode::WRITE, read(1), b"d\0ta", writes(None, true, false)),
        new(opcode::WRITE, read(2), b"d\0ta", writes(Some(66), false, false)),
        new(opcode::WRITE, read(4), b"d\0ta", writes(None, false, true)),
        new(
            opcode::FALLOCATE,
            none().u64(5).u64(10).u64(20).u32(3).u32(0),
            b"",
            Operation::Fallocate { fh: 5, off: 10, len: 20, mode: 3 },
        ),
        new(
            opcode::LSEEK,
            none().u64(5).u64(10).u32(4).u32(0),
            b"",
            Operation::Lseek { fh: 5, off: 10, whence: 4 },
        ),
        new(opcode::COPY_FILE_RANGE, copy.clone(), b"", copied(false)),
        new(opcode::COPY_FILE_RANGE_64, copy, b"", copied(true)),
    ]
}

fn locks_and_rest() -> Vec<Sample> {
    let args = |flock: u32| none().u64(5).u64(66).u64(10).u64(19).u32(1).u32(77).u32(flock).u32(0);
    let lock = Lock { fh: 5, owner: 66, start: 10, end: 19, kind: 1, pid: 77, flock: false };
    let whole = Lock { flock: true, ..lock };
    let ioctl = none().u64(5).u32(1).u32(0x6601).u64(0x7fff).u32(3).u32(8);
    let command =
        Operation::Ioctl { fh: 5, flags: 1, command: 0x6601, arg: 0x7fff, data: b"abc", out_size: 8 };
    let retrieved = none().u64(0).u64(4096).u32(4).u32(0).u64(0).u64(0).raw(b"data");
    vec![
        new(opcode::GETLK, args(0), b"", Operation::Getlk(lock)),
        new(opcode::SETLK, args(1), b"", Operation::Setlk { lock: whole, wait: false }),
        new(opcode::SETLKW, args(0), b"", Operation::Setlk { lock, wait: true }),
        new(opcode::INTERRUPT, none().u64(8), b"", Operation::Interrupt { unique: 8 }),
        new(
            opcode::BMAP,
            none().u64(12).u32(512).u32(0),
            b"",
            Operation::Bmap { block: 12, block_bytes: 512 },
        ),
        new(opcode::IOCTL, ioctl, b"abc", command),
        new(
            opcode::POLL,
            none().u64(5).u64(50).u32(1).u32(4),
            b"",
            Operation::Poll { fh: 5, kh: 50, flags: 1, events: 4 },
        ),
        new(opcode::NOTIFY_REPLY, none(), &retrieved.0, Operation::NotifyReply { off: 4096, data: b"data" }),
        new(opcode::SETUPMAPPING, none(), b"whatever", Operation::Unknown(opcode::SETUPMAPPING)),
        new(opcode::REMOVEMAPPING, none(), b"", Operation::Unknown(opcode::REMOVEMAPPING)),
        new(opcode::INIT, none(), b"elsewhere", Operation::Unknown(opcode::INIT)),
        Sample {
            agreed: Agreed { flags: flag::SETXATTR_EXT, ..OLDEST },
            ..new(4096, none(), b"", Operation::Unknown(4096))
        },
    ]
}
