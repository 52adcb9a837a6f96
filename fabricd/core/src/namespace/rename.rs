use kos_types::{Error, FileKind, Ino, Kind, ROOT, RenameMode, Reply, Result};

use super::{check_name, delete_entry, drop_link, entry, put_entry, touch_dir};
use crate::apply::Txn;
use crate::record::{Dentry, Inode};
use crate::{Tables, quota, read};

/// One side of a rename: the directory and the name in it.
type Name<'a> = (Ino, &'a Vec<u8>);
use alloc::vec::Vec;

pub(crate) fn rename<T: Tables>(
    txn: &mut Txn<'_, T>,
    from: Name<'_>,
    to: Name<'_>,
    mode: RenameMode,
) -> Result<Reply> {
    check_name(to.1)?;
    txn.live_dir(from.0)?;
    txn.live_dir(to.0)?;
    let source = entry(txn, from.0, from.1)?;
    let moved = txn.inode(source.ino)?;
    let target = match read::dentry(&txn.tables, to.0, to.1)? {
        Some(dentry) => Some((dentry, txn.inode(dentry.ino)?)),
        None => None,
    };
    if moved.attr.kind == FileKind::Dir && is_inside(txn, to.0, source.ino)? {
        return Err(Error::new(Kind::Invalid, "rename: into itself"));
    }
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => Err(Error::new(Kind::Exists, "rename")),
        (RenameMode::Exchange, None) => Err(Error::new(Kind::NotFound, "rename: nothing to exchange")),
        // Two names of one inode: POSIX leaves both.
        (_, Some((dentry, _))) if dentry.ino == source.ino => {
            Ok(Reply::Renamed { moved: moved.attr, replaced: None })
        }
        (RenameMode::Exchange, Some(target)) => exchange(txn, (from, source, moved), (to, target)),
        (_, target) => replace(txn, (from, source, moved), (to, target)),
    }
}

fn replace<T: Tables>(
    txn: &mut Txn<'_, T>,
    (from, source, mut moved): (Name<'_>, Dentry, Inode),
    (to, target): (Name<'_>, Option<(Dentry, Inode)>),
) -> Result<Reply> {
    quota::enter(txn, source.ino, to.0)?;
    moved.tree = txn.inode(source.ino)?.tree;
    let is_dir = moved.attr.kind == FileKind::Dir;
    let mut subdirs_to = i32::from(is_dir);
    let mut cookie = None;
    let mut replaced = None;
    if let Some((dentry, inode)) = target {
        let target_is_dir = inode.attr.kind == FileKind::Dir;
        match (is_dir, target_is_dir) {
            (true, false) => return Err(Error::new(Kind::NotDir, "rename: a directory over a file")),
            (false, true) => return Err(Error::new(Kind::IsDir, "rename: a file over a directory")),
            (true, true) if !read::is_empty_dir(&txn.tables, dentry.ino)? => {
                return Err(Error::new(Kind::NotEmpty, "rename: over a directory"));
            }
            _ => (),
        }
        subdirs_to -= i32::from(target_is_dir);
        // A listing in progress sees the name once: it stays in its position.
        cookie = Some(dentry.cookie);
        delete_entry(txn, to.0, to.1, dentry);
        replaced = Some(drop_link(txn, inode));
    }
    delete_entry(txn, from.0, from.1, source);
    put_entry(txn, to.0, to.1, source.ino, cookie);
    touch_dir(txn, from.0, -i32::from(is_dir))?;
    touch_dir(txn, to.0, subdirs_to)?;
    moved.attr.ctime = txn.now;
    Ok(Reply::Renamed { moved: txn.put_inode(moved), replaced })
}

fn exchange<T: Tables>(
    txn: &mut Txn<'_, T>,
    (from, source, mut moved): (Name<'_>, Dentry, Inode),
    (to, (target, mut other)): (Name<'_>, (Dentry, Inode)),
) -> Result<Reply> {
    let dirs = i32::from(moved.attr.kind == FileKind::Dir) - i32::from(other.attr.kind == FileKind::Dir);
    if other.attr.kind == FileKind::Dir && is_inside(txn, from.0, target.ino)? {
        return Err(Error::new(Kind::Invalid, "rename: into itself"));
    }
    quota::enter(txn, source.ino, to.0)?;
    quota::enter(txn, target.ino, from.0)?;
    moved.tree = txn.inode(source.ino)?.tree;
    other.tree = txn.inode(target.ino)?.tree;
    delete_entry(txn, from.0, from.1, source);
    delete_entry(txn, to.0, to.1, target);
    put_entry(txn, from.0, from.1, target.ino, Some(source.cookie));
    put_entry(txn, to.0, to.1, source.ino, Some(target.cookie));
    touch_dir(txn, from.0, -dirs)?;
    touch_dir(txn, to.0, dirs)?;
    moved.attr.ctime = txn.now;
    other.attr.ctime = txn.now;
    txn.put_inode(other);
    Ok(Reply::Renamed { moved: txn.put_inode(moved), replaced: None })
}

/// Whether `dir` is `top` or below it.
fn is_inside<T: Tables>(txn: &Txn<'_, T>, dir: Ino, top: Ino) -> Result<bool> {
    let mut at = dir;
    loop {
        if at == top {
            return Ok(true);
        }
        match read::any_parent(&txn.tables, at)? {
            Some(up) if at != ROOT => at = up,
            _ => return Ok(false),
        }
    }
}
