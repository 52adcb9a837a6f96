use kos_types::{Attr, Error, FileKind, Ino, Kind, Result, SetAttr, TimeChange, limits};

use super::create::libc_mode::{GROUP_EXEC, SETGID, SETUID};
use crate::acl::{self, Acl};
use crate::apply::Txn;
use crate::{Tables, extents, read, session};

pub(crate) fn set_attr<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, set: &SetAttr) -> Result<Attr> {
    let mut inode = txn.inode(ino)?;
    let now = txn.now;
    if let Some(size) = set.size {
        match inode.attr.kind {
            FileKind::File => (),
            FileKind::Dir => return Err(Error::new(Kind::IsDir, "truncate: a directory")),
            _ => return Err(Error::new(Kind::Invalid, "truncate: not a regular file")),
        }
        if size.size > limits::FILE_BYTES_MAX {
            return Err(Error::new(Kind::TooLarge, "truncate"));
        }
        session::check_fence(txn, ino, txn.grant)?;
        extents::check_seal(&inode)?;
        // Also when it grows: nothing may be mapped beyond the end, but cheap to be sure.
        inode.attr.bytes -= extents::cut(txn, ino, size.size, u64::MAX)?;
        inode.attr.size = size.size;
        inode.attr.mtime = now;
    }
    let attr = &mut inode.attr;
    let chown = set.uid.is_some() || set.gid.is_some();
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    // chown(2) clears them on everything but directories; a write by the kernel's word.
    if (chown || set.kill_suidgid) && attr.kind != FileKind::Dir {
        attr.mode &= !SETUID;
        if attr.mode & GROUP_EXEC != 0 {
            attr.mode &= !SETGID;
        }
    }
    if let Some(mode) = set.mode {
        attr.mode = mode & 0o7777;
    }
    if set.mode.is_some()
        && let Some(value) = read::own_xattr(&txn.tables, ino, acl::ACCESS)?
    {
        let mut list = Acl::decode(&value)?;
        list.chmod(attr.mode);
        txn.put_xattr(ino, acl::ACCESS, &list.encode());
    }
    let time = |change: TimeChange| match change {
        TimeChange::Now => now,
        TimeChange::Set(time) => time,
    };
    attr.atime = set.atime.map_or(attr.atime, time);
    attr.mtime = set.mtime.map_or(attr.mtime, time);
    attr.ctime = now;
    Ok(txn.put_inode(inode))
}
