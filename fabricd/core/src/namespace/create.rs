use alloc::vec::Vec;

use kos_types::{Attr, Cred, Error, FileKind, Ino, Kind, Result, limits};

use super::{check_name, put_entry, touch_dir};
use crate::acl::{self, Acl};
use crate::apply::Txn;
use crate::record::Inode;
use crate::{Tables, keys, read};

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
    let mut inode = make(txn, parent, &dir, &new)?;
    inode.attr.nlink = if is_dir { 2 } else { 1 };
    put_entry(txn, parent, name, inode.attr.ino, None);
    touch_dir(txn, parent, i32::from(is_dir))?;
    Ok(txn.put_inode(inode))
}

/// A file that has no name yet. Its orphan record names the directory, where that of a removed one is empty.
pub(crate) fn create_unnamed<T: Tables>(
    txn: &mut Txn<'_, T>,
    parent: Ino,
    (mode, umask): (u32, u32),
    cred: Cred,
) -> Result<Attr> {
    let dir = txn.live_dir(parent)?;
    let new = New { kind: FileKind::File, mode, umask, cred, rdev: 0, target: &[] };
    let inode = make(txn, parent, &dir, &new)?;
    txn.tables.put(keys::orphan(inode.attr.ino), parent.0.to_be_bytes().to_vec());
    Ok(txn.put_inode(inode))
}

/// A new inode of a directory, which has no links yet and is not in the tables; its attributes are, and it is counted.
fn make<T: Tables>(txn: &mut Txn<'_, T>, parent: Ino, dir: &Inode, new: &New<'_>) -> Result<Inode> {
    let setgid = dir.attr.mode & libc_mode::SETGID != 0;
    let (mode, inherited) = inherit(txn, parent, new)?;
    let ino = Ino(txn.seq().0 + INO_BASE);
    let attr = Attr {
        ino,
        kind: new.kind,
        mode: mode | if setgid && new.kind == FileKind::Dir { libc_mode::SETGID } else { 0 },
        nlink: 0,
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
    txn.state.inodes += 1;
    for (name, value) in inherited {
        txn.put_xattr(ino, name, &value);
    }
    Ok(Inode { birth: txn.seq(), attr, tree: dir.tree, target: new.target.to_vec() })
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
