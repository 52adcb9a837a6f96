//! A whole filesystem as programs see it, and beside it what is on stable storage. Pure: a cut is
//! a function of it and a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::content::{Change, Content};

/// Number of the root.
pub(crate) const ROOT: u64 = 1;
/// Changes of names that wait for an fsync; the oldest become stable by themselves beyond it, as
/// a journal's do.
const NAMES_MAX: usize = 4096;
/// Bytes of one file that wait for an fsync; they become stable by themselves beyond it, as
/// written-back pages do.
const UNSYNCED_MAX: usize = 64 << 20;

/// A name in a directory.
pub(crate) type Name = (u64, Vec<u8>);

/// Names that change together or not at all.
#[derive(Debug, Clone)]
pub(crate) struct NameChange {
    pub(crate) set: Vec<(Name, Option<u64>)>,
    /// The inodes that gain or lose a name.
    pub(crate) inodes: Vec<u64>,
}

/// What stat shows, less the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) is_dir: bool,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Of the last write; passed in, as there is no clock here.
    pub(crate) mtime: SystemTime,
}

#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) meta: Meta,
    pub(crate) links: u32,
    pub(crate) opens: u32,
    pub(crate) now: Content,
    pub(crate) stable: Content,
    pub(crate) unsynced: VecDeque<Change>,
    unsynced_bytes: usize,
}

/// The filesystem.
#[derive(Debug, Clone)]
pub struct Disk {
    pub(crate) capacity: u64,
    /// fsync answers and does nothing.
    pub(crate) ignores_fsync: bool,
    pub(crate) inodes: BTreeMap<u64, Inode>,
    pub(crate) names: BTreeMap<Name, u64>,
    pub(crate) stable_names: BTreeMap<Name, u64>,
    pub(crate) unsynced_names: VecDeque<NameChange>,
    pub(crate) next: u64,
}

impl Inode {
    pub(crate) fn new(meta: Meta, stable: Content) -> Self {
        let now = stable.clone();
        Self { meta, links: 0, opens: 0, now, stable, unsynced: VecDeque::new(), unsynced_bytes: 0 }
    }

    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.unsynced_bytes += change.bytes();
        self.unsynced.push_back(change);
        if self.unsynced_bytes > UNSYNCED_MAX {
            self.sync();
        }
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            self.stable.adopt(&self.now, &change);
        }
        self.unsynced_bytes = 0;
    }
}

impl Disk {
    /// An empty one of so many bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        let mut disk = Self {
            capacity,
            ignores_fsync: false,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            stable_names: BTreeMap::new(),
            unsynced_names: VecDeque::new(),
            next: ROOT + 1,
        };
        let meta = Meta { is_dir: true, mode: 0o755, uid: 0, gid: 0, mtime: UNIX_EPOCH };
        disk.inodes.insert(ROOT, Inode { links: 1, ..Inode::new(meta, Content::default()) });
        disk
    }

    /// Bytes allocated for what programs see.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.inodes
            .values()
            .filter(|inode| inode.links + inode.opens > 0)
            .map(|inode| inode.now.bytes())
            .sum()
    }

    pub(crate) fn inode(&self, ino: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(Errno::NOENT)
    }

    fn inode_mut(&mut self, ino: u64) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::NOENT)
    }

    pub(crate) fn lookup(&self, name: &Name) -> Result<u64, Errno> {
        self.names.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Names of a directory with inodes above `after`, in their order.
    pub(crate) fn list(&self, dir: u64, after: u64) -> Vec<(u64, &[u8])> {
        let range = self.names.range((dir, Vec::new())..(dir + 1, Vec::new()));
        let mut all: Vec<_> =
            range.filter(|&(_, &i)| i > after).map(|((_, name), &i)| (i, &**name)).collect();
        all.sort_unstable();
        all
    }

    /// A directory and everything below it.
    pub(crate) fn tree(&self, dir: u64) -> BTreeSet<u64> {
        let mut tree = BTreeSet::from([dir]);
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            let below: Vec<u64> = self.list(dir, 0).into_iter().map(|(ino, _)| ino).collect();
            let is_dir = |ino: &u64| self.inodes.get(ino).is_some_and(|inode| inode.meta.is_dir);
            dirs.extend(below.iter().copied().filter(is_dir));
            tree.extend(below);
        }
        tree
    }

    pub(crate) fn create(&mut self, name: Name, meta: Meta) -> Result<u64, Errno> {
        if self.names.contains_key(&name) {
            return Err(Errno::EXIST);
        }
        if self.inode(name.0)?.links == 0 {
            return Err(Errno::NOENT);
        }
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, Inode::new(meta, Content::default()));
        self.rename_all(vec![(name, Some(ino))]);
        Ok(ino)
    }

    pub(crate) fn remove(&mut self, name: Name, is_dir: bool) -> Result<(), Errno> {
        let ino = self.lookup(&name)?;
        match (self.inode(ino)?.meta.is_dir, is_dir) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            (true, true) if !self.list(ino, 0).is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.rename_all(vec![(name, None)]);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: Name, to: Name, replace: bool) -> Result<(), Errno> {
        let ino = self.lookup(&from)?;
        if let Ok(old) = self.lookup(&to) {
            if !replace {
                return Err(Errno::EXIST);
            }
            if old == ino {
                return Ok(());
            }
            if self.inode(old)?.meta.is_dir {
                return Err(Errno::ISDIR);
            }
        }
        self.rename_all(vec![(from, None), (to, Some(ino))]);
        Ok(())
    }

    /// Change names, all together.
    fn rename_all(&mut self, set: Vec<(Name, Option<u64>)>) {
        let mut inodes = Vec::new();
        for (name, new) in &set {
            let old = match *new {
                Some(ino) => self.names.insert(name.clone(), ino),
                None => self.names.remove(name),
            };
            for (ino, gained) in old.map(|ino| (ino, false)).into_iter().chain(new.map(|ino| (ino, true))) {
                let inode = self.inodes.get_mut(&ino).expect("a name's inode");
                inode.links = if gained { inode.links + 1 } else { inode.links - 1 };
                inodes.push(ino);
            }
        }
        self.unsynced_names.push_back(NameChange { set, inodes });
        // The bytes of files without names are kept for as long as a cut can bring those back.
        let dead = |inode: &&Inode| inode.links + inode.opens == 0;
        let kept: u64 =
            self.inodes.values().filter(dead).map(|inode| inode.now.bytes() + inode.stable.bytes()).sum();
        if self.unsynced_names.len() > NAMES_MAX || kept > self.capacity / 4 {
            let all = std::mem::take(&mut self.unsynced_names);
            all.into_iter().for_each(|change| settle(&mut self.stable_names, change));
            self.reap();
        }
    }

    pub(crate) fn open(&mut self, ino: u64, truncate: bool) -> Result<(), Errno> {
        let inode = self.inode_mut(ino)?;
        inode.opens += 1;
        if truncate {
            inode.change(Change::Size(0));
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, ino: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.opens = inode.opens.saturating_sub(1);
            if inode.links + inode.opens == 0 {
                self.reap();
            }
        }
    }

    pub(crate) fn read(&self, ino: u64, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        Ok(self.inode(ino)?.now.read(at, len))
    }

    pub(crate) fn write(&mut self, ino: u64, at: u64, data: &[u8]) -> Result<(), Errno> {
        if self.bytes_used() + data.len() as u64 > self.capacity {
            return Err(Errno::NOSPC);
        }
        self.inode_mut(ino)?.change(Change::Write(at, data.to_vec()));
        Ok(())
    }

    /// Change a file's size or punch a hole.
    pub(crate) fn change(&mut self, ino: u64, change: Change) -> Result<(), Errno> {
        self.inode_mut(ino)?.change(change);
        Ok(())
    }

    pub(crate) fn set_meta(&mut self, ino: u64, set: impl FnOnce(&mut Meta)) -> Result<(), Errno> {
        set(&mut self.inode_mut(ino)?.meta);
        Ok(())
    }

    /// The bytes and the size of a file are stable; its name is not.
    pub(crate) fn fsync(&mut self, ino: u64) -> Result<(), Errno> {
        let ignored = self.ignores_fsync;
        let inode = self.inode_mut(ino)?;
        if !ignored {
            inode.sync();
        }
        Ok(())
    }

    /// The names in a directory are stable, and with them what those changes build on.
    pub(crate) fn fsync_dir(&mut self, dir: u64) {
        if self.ignores_fsync {
            return;
        }
        let (mut names, mut inodes) = (BTreeSet::new(), BTreeSet::new());
        let mut stay = VecDeque::new();
        let mut go = Vec::new();
        for change in std::mem::take(&mut self.unsynced_names).into_iter().rev() {
            let wanted = change.set.iter().any(|(name, _)| name.0 == dir || names.contains(name))
                || change.inodes.iter().any(|ino| inodes.contains(ino));
            if wanted {
                names.extend(change.set.iter().map(|(name, _)| name.clone()));
                inodes.extend(change.inodes.iter().copied());
                go.push(change);
            } else {
                stay.push_front(change);
            }
        }
        go.into_iter().rev().for_each(|change| settle(&mut self.stable_names, change));
        self.unsynced_names = stay;
        self.reap();
    }

    /// Drop inodes that nothing can bring back.
    fn reap(&mut self) {
        let mut kept: BTreeSet<u64> = self.stable_names.values().copied().collect();
        kept.extend(self.unsynced_names.iter().flat_map(|change| change.inodes.iter().copied()));
        self.inodes.retain(|ino, inode| inode.links + inode.opens > 0 || kept.contains(ino));
    }
}

/// Put a change of names in force.
pub(crate) fn settle(names: &mut BTreeMap<Name, u64>, change: NameChange) {
    for (name, ino) in change.set {
        match ino {
            Some(ino) => names.insert(name, ino),
            None => names.remove(&name),
        };
    }
}
