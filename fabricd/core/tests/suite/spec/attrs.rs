//! Attributes, extended ones too.

use kos_types::{Attr, FileKind, Ino, Kind, SetAttr, TimeChange, XattrMode};

use super::{Result, Spec};

impl Spec {
    pub(super) fn set_attr(&mut self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let now = self.now;
        let node = self.node_mut(ino)?;
        if let Some(size) = set.size {
            match node.attr.kind {
                FileKind::File => (),
                FileKind::Dir => return Err(Kind::IsDir),
                _ => return Err(Kind::Invalid),
            }
            if size.size > i64::MAX as u64 {
                return Err(Kind::TooLarge);
            }
            if node.attr.sealed {
                return Err(Kind::NotPermitted);
            }
            node.data.retain(|&byte, _| byte < size.size);
            node.attr.size = size.size;
            node.attr.mtime = now;
        }
        let attr = &mut node.attr;
        let owner_changes = set.uid.is_some() || set.gid.is_some();
        if (owner_changes || set.kill_suidgid) && attr.kind != FileKind::Dir {
            // Setgid without group execution once meant mandatory locking, so it stays.
            let setgid = if attr.mode & 0o010 != 0 { 0o2000 } else { 0 };
            attr.mode &= !(0o4000 | setgid);
        }
        if let Some(mode) = set.mode {
            attr.mode = mode & 0o7777;
        }
        if let Some(uid) = set.uid {
            attr.uid = uid;
        }
        if let Some(gid) = set.gid {
            attr.gid = gid;
        }
        for (change, time) in [(set.atime, &mut attr.atime), (set.mtime, &mut attr.mtime)] {
            match change {
                Some(TimeChange::Now) => *time = now,
                Some(TimeChange::Set(chosen)) => *time = chosen,
                None => (),
            }
        }
        attr.ctime = now;
        self.bury(&[].into());
        self.stat(ino)
    }

    pub(super) fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if name.is_empty() || name.len() > 255 || value.len() > 65536 {
            return Err(Kind::Range);
        }
        if name.starts_with(b"user.kos.") {
            let fine = match name {
                b"user.kos.ec" => [&b"4+2"[..], b"1+0", b"16+4"].contains(&value),
                b"user.kos.seal" => true,
                b"user.kos.durability" => [&b"disk"[..], b"memory", b"scratch"].contains(&value),
                _ => false,
            };
            if !fine {
                return Err(Kind::Invalid);
            }
        }
        let now = self.now;
        let node = self.node_mut(ino)?;
        match (mode, node.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Kind::Exists),
            (XattrMode::Replace, false) => return Err(Kind::NoAttr),
            _ => (),
        }
        if name == b"user.kos.seal" {
            node.attr.sealed = match (node.attr.kind, value) {
                (FileKind::File, b"1") => true,
                (FileKind::File | FileKind::Dir, b"0") | (FileKind::Dir, b"on-close") => false,
                _ => return Err(Kind::Invalid),
            };
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        node.attr.ctime = now;
        Ok(())
    }

    pub(super) fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<()> {
        let now = self.now;
        let node = self.node_mut(ino)?;
        node.xattrs.remove(name).ok_or(Kind::NoAttr)?;
        if name == b"user.kos.seal" {
            node.attr.sealed = false;
        }
        node.attr.ctime = now;
        Ok(())
    }
}
