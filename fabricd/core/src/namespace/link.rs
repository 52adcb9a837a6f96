use kos_types::{Attr, Error, FileKind, Ino, Kind, Result, limits};

use super::{check_name, put_entry, touch_dir};
use crate::apply::Txn;
use crate::{Tables, keys, read};

pub(crate) fn link<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
    check_name(name)?;
    let dir = txn.live_dir(parent)?;
    let mut inode = txn.inode(ino)?;
    if inode.attr.kind == FileKind::Dir {
        return Err(Error::new(Kind::NotPermitted, "link: a directory"));
    }
    let is_first = inode.attr.nlink == 0;
    if is_first && read::made_in(&txn.tables, ino)?.is_none() {
        return Err(Error::new(Kind::NotFound, "link: removed"));
    }
    if inode.tree != dir.tree {
        return Err(Error::new(Kind::CrossDevice, "link: into a directory of another quota"));
    }
    if inode.attr.nlink >= limits::LINKS_MAX {
        return Err(Error::new(Kind::TooManyLinks, "link"));
    }
    if read::dentry(&txn.tables, parent, name)?.is_some() {
        return Err(Error::new(Kind::Exists, "link"));
    }
    if is_first {
        txn.tables.delete(keys::orphan(ino));
    }
    inode.attr.nlink += 1;
    inode.attr.ctime = txn.now;
    put_entry(txn, parent, name, ino, None);
    touch_dir(txn, parent, 0)?;
    Ok(txn.put_inode(inode))
}
