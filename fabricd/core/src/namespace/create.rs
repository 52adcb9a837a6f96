use alloc::vec::Vec;

use kos_types::{Attr, Cred, Error, FileKind, Ino, Kind, Result, limits};

use super::{check_name, put_entry, touch_dir};
use crate::acl::{self, Acl};
use crate::apply::Txn;
use crate::record::Inode;
use crate::{Tables, read};

/// Inode numbers are the creating commit's, above the ones front ends keep for themselves.
const INO_BASE: u64 = 16;

/// What to create.
pub(crate) struct New<'a> {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) umask: u32,
    pub(crate) cred: Cred,
    pub(crate) rdev: u32,
    pub(crate) target: &'a [u8],
}

pub(crate) fn create<T: Tables>(
    txn: &mut Txn<'_, T>,
    parent: Ino,
    name: &[u8],
    new: New<'_>,
) -> Result<Attr> {
    check_name(name)?;
    if new.target.len() > limits::SYMLINK_BYTES_MAX {
        return Err(Error::new(Kind::NameTooLong, "symlink: target of more than 4095 bytes"));
    }
    let dir = txn.live_dir(parent)?;
    if read::dentry(&txn.tables, parent, name)?.is_some() {
        return Err(Error::new(Kind::Exists, "create"));
    }
    let is_dir = new.kind == FileKind::Dir;
    let setgid = dir.attr.mode & libc_mode::SETGID != 0;
    let (mode, inherited) = inherit(txn, parent, &new)?;
    let ino = Ino(txn.seq().0 + INO_BASE);
    let attr = Attr {
        ino,
        kind: new.kind,
        mode: mode | if setgid && is_dir { libc_mode::SETGID } else { 0 },
        nlink: if is_dir { 2 } else { 1 },
        uid: new.cred.uid,
        gid: if setgid { dir.attr.gid } else { new.cred.gid },
        rdev: new.rdev,
        size: new.target.len() as u64,
        bytes: 0,
        atime: txn.now,
        mtime: txn.now,
        ctime: txn.now,
        btime: txn.now,
        sealed: false,
    };
    put_entry(txn, parent, name, ino, None);
    touch_dir(txn, parent, i32::from(is_dir))?;
    txn.state.inodes += 1;
    let tree = dir.tree;
    for (name, value) in inherited {
        txn.put_xattr(ino, name, &value);
    }
    let birth = txn.seq();
    Ok(txn.put_inode(Inode { birth, attr, tree, target: new.target.to_vec() }))
}

/// An extended attribute's name and value.
type Xattr = (&'static [u8], Vec<u8>);

/// What a new entry gets from its parent's default access list: mode bits, and lists.
fn inherit<T: Tables>(txn: &Txn<'_, T>, parent: Ino, new: &New<'_>) -> Result<(u32, Vec<Xattr>)> {
    let mode = new.mode & 0o7777;
    let default = match new.kind {
        FileKind::Symlink => None,
        _ => read::own_xattr(&txn.tables, parent, acl::DEFAULT)?,
    };
    let Some(default) = default else { return Ok((mode & !new.umask, Vec::new())) };
    let mut list = Acl::decode(&default)?;
    let mode = mode & !0o777 | list.create(mode);
    let mut lists = Vec::new();
    if !list.is_minimal() {
        lists.push((acl::ACCESS, list.encode()));
    }
    if new.kind == FileKind::Dir {
        lists.push((acl::DEFAULT, default));
    }
    Ok((mode, lists))
}

/// Mode bits by name; the crate has no libc.
pub(super) mod libc_mode {
    pub(crate) const SETUID: u32 = 0o4000;
    pub(crate) const SETGID: u32 = 0o2000;
    pub(crate) const GROUP_EXEC: u32 = 0o0010;
}
