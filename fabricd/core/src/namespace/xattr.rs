use kos_types::{Error, Ino, Kind, Result, XattrMode, limits};

use crate::acl::{self, Acl};
use crate::apply::Txn;
use crate::{Tables, keys, policy, quota, read};

pub(crate) fn set_xattr<T: Tables>(
    txn: &mut Txn<'_, T>,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<()> {
    if name.is_empty() || name.len() > limits::XATTR_NAME_BYTES_MAX {
        return Err(Error::new(Kind::Range, "xattr: name of 1 to 255 bytes"));
    }
    if value.len() > limits::XATTR_VALUE_BYTES_MAX {
        return Err(Error::new(Kind::Range, "xattr: value of more than 64 KiB"));
    }
    policy::check(name, value)?;
    if !quota::set(txn, ino, name, Some(value))? && name.starts_with(quota::PREFIX) {
        return Err(Error::new(Kind::Invalid, "trusted.kos.: unknown name"));
    }
    let mut inode = txn.inode(ino)?;
    let key = keys::xattr(ino, name);
    let exists = txn.tables.get(&key)?.is_some();
    match mode {
        XattrMode::Create if exists => return Err(Error::new(Kind::Exists, "xattr")),
        XattrMode::Replace if !exists => return Err(Error::new(Kind::NoAttr, "xattr")),
        _ => (),
    }
    if !exists && read::xattrs(&txn.tables, ino)?.len() >= limits::XATTRS_MAX {
        return Err(Error::new(Kind::NoSpace, "xattr: too many on one inode"));
    }
    inode.attr.ctime = txn.now;
    if name == policy::SEAL {
        inode.attr.sealed = policy::seals(inode.attr.kind, value)?;
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        let mut list = Acl::decode(value)?;
        if name == acl::ACCESS {
            inode.attr.mode = inode.attr.mode & !0o777 | list.mode();
            if list.is_minimal() {
                // The mode says all of it.
                txn.tables.delete(key);
                txn.put_inode(inode);
                return Ok(());
            }
        }
    }
    txn.put_xattr(ino, name, value);
    txn.put_inode(inode);
    Ok(())
}

pub(crate) fn remove_xattr<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, name: &[u8]) -> Result<()> {
    read::xattr(&txn.tables, ino, name)?;
    quota::set(txn, ino, name, None)?;
    txn.tables.delete(keys::xattr(ino, name));
    let mut inode = txn.inode(ino)?;
    inode.attr.ctime = txn.now;
    inode.attr.sealed &= name != policy::SEAL;
    txn.put_inode(inode);
    Ok(())
}
