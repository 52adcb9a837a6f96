use kos_types::{Attr, Error, FileKind, Ino, JOBS, Kind, Result};

use super::{delete_entry, drop_link, entry, touch_dir};
use crate::apply::Txn;
use crate::{Tables, extents, job, keys, read};

/// Extended attributes taken from the tables at once.
const SCAN: usize = 256;

pub(crate) fn unlink<T: Tables>(txn: &mut Txn<'_, T>, parent: Ino, name: &[u8]) -> Result<Attr> {
    read::dir(&txn.tables, parent)?;
    let dentry = entry(txn, parent, name)?;
    let inode = txn.inode(dentry.ino)?;
    if inode.attr.kind == FileKind::Dir {
        return Err(Error::new(Kind::IsDir, "unlink: a directory"));
    }
    delete_entry(txn, parent, name, dentry);
    touch_dir(txn, parent, 0)?;
    Ok(drop_link(txn, inode))
}

pub(crate) fn rmdir<T: Tables>(txn: &mut Txn<'_, T>, parent: Ino, name: &[u8]) -> Result<Attr> {
    read::dir(&txn.tables, parent)?;
    let dentry = entry(txn, parent, name)?;
    let inode = read::dir(&txn.tables, dentry.ino)?;
    if !read::is_empty_dir(&txn.tables, dentry.ino)? {
        return Err(Error::new(Kind::NotEmpty, "rmdir"));
    }
    if parent == JOBS {
        job::removed(txn, name)?;
    }
    delete_entry(txn, parent, name, dentry);
    touch_dir(txn, parent, -1)?;
    Ok(drop_link(txn, inode))
}

/// Drop an inode that has no name and no user left.
pub(crate) fn reap<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino) -> Result<()> {
    if txn.tables.get(&keys::orphan(ino))?.is_none() {
        return Ok(());
    }
    extents::cut(txn, ino, 0, u64::MAX)?;
    let prefix = keys::xattrs(ino);
    loop {
        let found = txn.tables.scan(&prefix, &keys::end_of(&prefix), SCAN)?;
        if found.is_empty() {
            break;
        }
        for (key, _) in found {
            txn.tables.delete(key);
        }
    }
    txn.tables.delete(keys::fence(ino));
    txn.tables.delete(keys::orphan(ino));
    txn.tables.delete(keys::inode(ino));
    txn.state.inodes -= 1;
    Ok(())
}
