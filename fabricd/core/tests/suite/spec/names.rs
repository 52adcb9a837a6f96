//! Names: create, link, unlink, rmdir, rename.

use kos_types::{Attr, Cred, FileKind, Ino, Kind, Op, RenameMode, Reply};

use super::{Node, Result, Spec};

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => Err(Kind::Invalid),
        long if long.len() > 255 => Err(Kind::NameTooLong),
        bad if bad.contains(&b'/') || bad.contains(&0) => Err(Kind::Invalid),
        _ => Ok(()),
    }
}

impl Spec {
    pub(super) fn create(&mut self, op: &Op, fresh: Ino) -> Result<Attr> {
        let Op::Create { parent, name, kind, mode, umask, cred, rdev, target } = op else {
            panic!("not a create")
        };
        check_name(name)?;
        if target.len() > 4095 {
            return Err(Kind::NameTooLong);
        }
        let dir = self.live_dir(*parent)?;
        if dir.find(name).is_some() {
            return Err(Kind::Exists);
        }
        self.make(*parent, (*kind, mode & !umask), *cred, fresh)?;
        let made = self.node_mut(fresh)?;
        (made.attr.rdev, made.attr.size, made.target) = (*rdev, target.len() as u64, target.clone());
        self.dir_mut(*parent).names.push((name.clone(), fresh));
        self.stat(fresh)
    }

    /// As a file is created, but for the name.
    pub(super) fn create_unnamed(&mut self, parent: Ino, mode: u32, cred: Cred, fresh: Ino) -> Result<Attr> {
        self.make(parent, (FileKind::File, mode), cred, fresh)?;
        self.node_mut(fresh)?.is_new = true;
        self.stat(fresh)
    }

    fn make(&mut self, parent: Ino, (kind, mode): (FileKind, u32), cred: Cred, fresh: Ino) -> Result<()> {
        let dir = self.live_dir(parent)?;
        let (inherits, group) = (dir.attr.mode & 0o2000 != 0, dir.attr.gid);
        let now = self.now;
        let attr = Attr {
            ino: fresh,
            kind,
            mode: if inherits && kind == FileKind::Dir { mode | 0o2000 } else { mode },
            nlink: 0,
            uid: cred.uid,
            gid: if inherits { group } else { cred.gid },
            rdev: 0,
            size: 0,
            bytes: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            sealed: false,
        };
        assert!(self.nodes.insert(fresh, Node::new(attr, &[])).is_none(), "{fresh:?} is in use");
        Ok(())
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        self.live_dir(parent)?;
        self.node(ino)?;
        if self.is_dir(ino) {
            return Err(Kind::NotPermitted);
        }
        if self.nlink(ino) == 0 && !self.node(ino)?.is_new {
            return Err(Kind::NotFound);
        }
        if self.live_dir(parent)?.find(name).is_some() {
            return Err(Kind::Exists);
        }
        self.node_mut(ino)?.is_new = false;
        self.dir_mut(parent).names.push((name.to_vec(), ino));
        self.changed(ino)
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let ino = self.entry(parent, name)?;
        if self.is_dir(ino) {
            return Err(Kind::IsDir);
        }
        self.dir_mut(parent).names.retain(|entry| entry.0 != name);
        self.changed(ino)
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let ino = self.entry(parent, name)?;
        if !self.is_dir(ino) {
            return Err(Kind::NotDir);
        }
        if !self.node(ino)?.names.is_empty() {
            return Err(Kind::NotEmpty);
        }
        self.dir_mut(parent).names.retain(|entry| entry.0 != name);
        self.changed(ino)
    }

    pub(super) fn rename(
        &mut self,
        (from, name): (Ino, &[u8]),
        (to, new_name): (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<Reply> {
        check_name(new_name)?;
        self.live_dir(from)?;
        self.live_dir(to)?;
        let moved = self.entry(from, name)?;
        let target = self.node(to)?.find(new_name);
        if self.is_in(to, moved) {
            return Err(Kind::Invalid);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Kind::Exists),
            (RenameMode::Exchange, None) => return Err(Kind::NotFound),
            (_, Some(target)) if target == moved => {
                return Ok(Reply::Renamed { moved: self.stat(moved)?, replaced: None });
            }
            (RenameMode::Exchange, Some(target)) => {
                if self.is_in(from, target) {
                    return Err(Kind::Invalid);
                }
                self.point(from, name, target);
                self.point(to, new_name, moved);
                self.changed(target)?;
                return Ok(Reply::Renamed { moved: self.changed(moved)?, replaced: None });
            }
            (_, Some(target)) => match (self.is_dir(moved), self.is_dir(target)) {
                (true, false) => return Err(Kind::NotDir),
                (false, true) => return Err(Kind::IsDir),
                _ if !self.node(target)?.names.is_empty() => return Err(Kind::NotEmpty),
                _ => self.point(to, new_name, moved),
            },
            (_, None) => self.dir_mut(to).names.push((new_name.to_vec(), moved)),
        }
        self.dir_mut(from).names.retain(|entry| entry.0 != name);
        let replaced = target.map(|target| self.changed(target)).transpose()?;
        Ok(Reply::Renamed { moved: self.changed(moved)?, replaced })
    }

    /// Let an entry that exists name `ino`, in the position it has.
    fn point(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        for entry in &mut self.dir_mut(dir).names {
            if entry.0 == name {
                entry.1 = ino;
            }
        }
    }

    /// Whether `ino` is `top` or somewhere below it.
    fn is_in(&self, ino: Ino, top: Ino) -> bool {
        ino == top || self.nodes.get(&top).is_some_and(|dir| dir.names.iter().any(|e| self.is_in(ino, e.1)))
    }

    fn entry(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.node(parent)?;
        if dir.attr.kind != FileKind::Dir {
            return Err(Kind::NotDir);
        }
        if name.len() > 255 {
            return Err(Kind::NameTooLong);
        }
        dir.find(name).ok_or(Kind::NotFound)
    }

    fn live_dir(&self, ino: Ino) -> Result<&Node> {
        let dir = self.node(ino)?;
        if dir.attr.kind != FileKind::Dir {
            return Err(Kind::NotDir);
        }
        if self.nlink(ino) == 0 {
            return Err(Kind::NotFound);
        }
        Ok(dir)
    }

    /// A directory whose names are about to change.
    fn dir_mut(&mut self, ino: Ino) -> &mut Node {
        let now = self.now;
        let dir = self.nodes.get_mut(&ino).expect("checked before");
        dir.attr.mtime = now;
        dir.attr.ctime = now;
        dir
    }

    fn changed(&mut self, ino: Ino) -> Result<Attr> {
        self.node_mut(ino)?.attr.ctime = self.now;
        self.stat(ino)
    }
}
