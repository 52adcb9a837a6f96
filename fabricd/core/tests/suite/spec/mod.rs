//! The model: a tree in memory that is obviously right and never fast. It counts instead of keeping
//! counters, and knows a file as the place of each byte that is mapped.

mod attrs;
mod data;
mod names;

use std::collections::{BTreeMap, BTreeSet};

use kos_types::{Attr, Command, FileKind, Ino, Kind, Op, ROOT, Reply, Snapshot, StripeId, Time};

/// An error is its kind.
pub(crate) type Result<T> = std::result::Result<T, Kind>;

/// Where one byte of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Byte {
    /// This byte of a stripe.
    In(StripeId, u64),
    /// With the metadata: the byte.
    Inline(u8),
}

/// An inode.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// As stat shows it but for `nlink` and `bytes`: [`Spec::stat`] counts them.
    pub(crate) attr: Attr,
    pub(crate) target: Vec<u8>,
    /// A directory's entries, in the order of listings.
    pub(crate) names: Vec<(Vec<u8>, Ino)>,
    pub(crate) data: BTreeMap<u64, Byte>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// It never had a name.
    pub(crate) is_new: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) nodes: BTreeMap<Ino, Node>,
    /// Stripes that a file points at, and their bytes.
    pub(crate) stripes: BTreeMap<StripeId, u64>,
    /// Stripes that no file points at any more, and the second that was so.
    pub(crate) garbage: BTreeSet<(u64, StripeId)>,
    /// Stripes that died in the last command.
    pub(crate) freed: BTreeSet<StripeId>,
    /// Ids that were ever committed.
    pub(crate) ever: BTreeSet<StripeId>,
    /// Snapshots by their views: name, and the nodes as they were.
    pub(crate) snapshots: BTreeMap<u64, (Vec<u8>, BTreeMap<Ino, Node>)>,
    views: u64,
    pub(crate) batch: u64,
    now: Time,
}

impl Spec {
    pub(crate) fn new(root: Attr) -> Self {
        let (stripes, garbage, freed) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let nodes = BTreeMap::from([(ROOT, Node::new(root, &[]))]);
        let (ever, snapshots) = (BTreeSet::new(), BTreeMap::new());
        Self { nodes, stripes, garbage, freed, ever, snapshots, views: 0, batch: 0, now: Time::default() }
    }

    /// `fresh` is the number of an inode that this command creates.
    pub(crate) fn apply(&mut self, command: &Command, fresh: Ino) -> Result<Reply> {
        self.now = command.now;
        self.freed.clear();
        match &command.op {
            Op::Create { .. } => self.create(&command.op, fresh).map(Reply::Attr),
            Op::CreateUnnamed { parent, mode, umask, cred } => {
                self.create_unnamed(*parent, mode & !umask, *cred, fresh).map(Reply::Attr)
            }
            Op::Link { ino, parent, name } => self.link(*ino, *parent, name).map(Reply::Attr),
            Op::Unlink { parent, name } => self.unlink(*parent, name).map(Reply::Unlinked),
            Op::Rmdir { parent, name } => self.rmdir(*parent, name).map(Reply::Unlinked),
            Op::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((*parent, name), (*new_parent, new_name), *mode)
            }
            Op::SetAttr { ino, set } => self.set_attr(*ino, set).map(Reply::Attr),
            Op::SetXattr { ino, name, value, mode } => {
                self.set_xattr(*ino, name, value, *mode).map(|()| Reply::Done)
            }
            Op::RemoveXattr { ino, name } => self.remove_xattr(*ino, name).map(|()| Reply::Done),
            Op::Commit { ino, stripes, holes, extents, inline, size_min, mtime } => {
                let before = self.clone();
                let done = self
                    .commit(*ino, stripes, (holes, extents, inline), (*size_min, *mtime))
                    .map(Reply::Attr);
                if done.is_err() {
                    *self = before;
                }
                done
            }
            Op::Punch { ino, off, len } => self.punch(*ino, *off, *len).map(Reply::Attr),
            Op::Clone { from, from_off, to, to_off, len } => {
                self.copy((*from, *from_off), (*to, *to_off), *len).map(Reply::Attr)
            }
            Op::Reap { ino } => {
                if self.nodes.contains_key(ino) && self.nlink(*ino) == 0 {
                    self.nodes.remove(ino);
                    self.bury(&BTreeSet::new());
                }
                Ok(Reply::Done)
            }
            Op::TakeSnapshot { name } => {
                names::check_name(name)?;
                if self.snapshots.values().any(|(taken, _)| taken == name) {
                    return Err(Kind::Exists);
                }
                self.views += 1;
                self.snapshots.insert(self.views, (name.clone(), self.nodes.clone()));
                let snapshot = Snapshot { name: name.clone(), view: self.views, taken: self.now };
                Ok(Reply::Snapshot(snapshot))
            }
            Op::DropSnapshot { name } => {
                let view = self.snapshots.iter().find(|(_, (taken, _))| taken == name);
                let view = *view.ok_or(Kind::NotFound)?.0;
                self.snapshots.remove(&view);
                Ok(Reply::Done)
            }
            // All of it: the commands ask for no less after a snapshot is dropped.
            Op::Prune { .. } => {
                self.bury(&BTreeSet::new());
                Ok(Reply::Pruned(None))
            }
            Op::Compact { .. } => panic!("compaction has tests of its own"),
            Op::OpenSession
            | Op::EndSession { .. }
            | Op::ForgetSession { .. }
            | Op::FenceSession { .. }
            | Op::Fence { .. } => panic!("sessions have tests of their own"),
            Op::OpenBatch => {
                self.batch += 1;
                Ok(Reply::Batch(self.batch))
            }
            Op::Collected { stripes } => {
                self.garbage.retain(|dead| !stripes.contains(dead));
                Ok(Reply::Done)
            }
            Op::Job(_) => panic!("the model knows no jobs; their tests are in job.rs"),
        }
    }

    /// As the snapshot shows it.
    pub(crate) fn seen_in(&self, view: u64) -> Self {
        Self { nodes: self.snapshots[&view].1.clone(), ..self.clone() }
    }

    fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(Kind::Stale)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Kind::Stale)
    }

    pub(crate) fn stat(&self, ino: Ino) -> Result<Attr> {
        let node = self.node(ino)?;
        Ok(Attr { nlink: self.nlink(ino), bytes: node.data.len() as u64, ..node.attr.clone() })
    }

    /// Names of `ino` for what is no directory; `.`, its name, and `..` of each directory in it
    /// for one.
    pub(crate) fn nlink(&self, ino: Ino) -> u32 {
        let names = self.nodes.values().flat_map(|dir| &dir.names).filter(|name| name.1 == ino).count();
        if !self.is_dir(ino) {
            return names as u32;
        }
        if names == 0 && ino != ROOT {
            return 0;
        }
        let inside = self.nodes.get(&ino).map_or(&[][..], |dir| &dir.names);
        2 + inside.iter().filter(|name| self.is_dir(name.1)).count() as u32
    }

    pub(crate) fn is_dir(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.attr.kind == FileKind::Dir)
    }
}

impl Node {
    fn new(attr: Attr, target: &[u8]) -> Self {
        let (names, data, xattrs) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { attr, target: target.to_vec(), names, data, xattrs, is_new: false }
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<Ino> {
        self.names.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
    }
}
