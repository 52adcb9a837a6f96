//! Names and inodes, a file for each operation.

mod create;
mod link;
mod rename;
mod setattr;
mod unlink;
mod xattr;

use alloc::vec::Vec;

use kos_types::{Error, Ino, Kind, Result, limits};

pub(crate) use create::{New, create, create_unnamed};
pub(crate) use link::link;
pub(crate) use rename::rename;
pub(crate) use setattr::set_attr;
pub(crate) use unlink::{reap, rmdir, unlink};
pub(crate) use xattr::{remove_xattr, set_xattr};

use crate::apply::Txn;
use crate::record::{Dentry, Inode};
use crate::{Tables, keys, read};

/// Positions of listings start above what front ends use for `.` and `..`.
const COOKIE_STEP: u64 = 16;

pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(Error::new(Kind::NameTooLong, "name: at most 255 bytes"));
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(Error::new(Kind::Invalid, "name: empty, dot or with a slash"));
    }
    Ok(())
}

fn entry<T: Tables>(txn: &Txn<'_, T>, parent: Ino, name: &[u8]) -> Result<Dentry> {
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(Error::new(Kind::NameTooLong, "name: at most 255 bytes"));
    }
    read::dentry(&txn.tables, parent, name)?.ok_or_else(|| Error::new(Kind::NotFound, "no such entry"))
}

/// Write a name; `cookie` is its position, or the next one.
pub(crate) fn put_entry<T: Tables>(
    txn: &mut Txn<'_, T>,
    parent: Ino,
    name: &[u8],
    ino: Ino,
    cookie: Option<u64>,
) {
    let cookie = cookie.unwrap_or_else(|| txn.seq().0 * COOKIE_STEP);
    let dentry = Dentry { birth: txn.seq(), ino, cookie };
    txn.tables.put(keys::dentry(parent, name), dentry.encode());
    let mut listing = txn.seq().0.to_le_bytes().to_vec();
    listing.extend_from_slice(&ino.0.to_le_bytes());
    listing.extend_from_slice(name);
    txn.tables.put(keys::listing(parent, cookie), listing);
    txn.tables.put(keys::back_link(ino, parent, name), txn.seq().0.to_le_bytes().to_vec());
}

fn delete_entry<T: Tables>(txn: &mut Txn<'_, T>, parent: Ino, name: &[u8], dentry: Dentry) {
    txn.tables.delete(keys::dentry(parent, name));
    txn.tables.delete(keys::listing(parent, dentry.cookie));
    txn.tables.delete(keys::back_link(dentry.ino, parent, name));
}

/// The names of `dir` changed, and its subdirectories by `subdirs`.
fn touch_dir<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, subdirs: i32) -> Result<()> {
    let mut dir = txn.inode(ino)?;
    dir.attr.nlink = dir
        .attr
        .nlink
        .checked_add_signed(subdirs)
        .ok_or_else(|| Error::new(Kind::TooManyLinks, "directory: too many subdirectories"))?;
    dir.attr.mtime = txn.now;
    dir.attr.ctime = txn.now;
    txn.put_inode(dir);
    Ok(())
}

/// One name of `inode` is gone; all of a directory's go at once.
fn drop_link<T: Tables>(txn: &mut Txn<'_, T>, mut inode: Inode) -> kos_types::Attr {
    let is_dir = inode.attr.kind == kos_types::FileKind::Dir;
    inode.attr.nlink = if is_dir { 0 } else { inode.attr.nlink - 1 };
    inode.attr.ctime = txn.now;
    if inode.attr.nlink == 0 {
        txn.tables.put(keys::orphan(inode.attr.ino), Vec::new());
    }
    txn.put_inode(inode)
}
