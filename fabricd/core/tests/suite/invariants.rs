//! What holds of the tables after every command, whatever the commands were.

use std::collections::{BTreeMap, BTreeSet};

use kos_core::quota::Account;
use kos_core::record::{Dentry, ExtentRecord, Inode, Place, SnapshotRecord, State, Stripe, Usage};
use kos_core::{MemTables, keys};
use kos_types::limits::INLINE_BYTES_MAX;
use kos_types::{FileKind, Ino, JOBS, ROOT, Seq, StripeId};

/// All records, by the fields of their keys.
#[derive(Default)]
struct All {
    state: State,
    inodes: BTreeMap<Ino, Inode>,
    dentries: BTreeMap<(Ino, Vec<u8>), Dentry>,
    /// Inode and name at the position in the directory.
    listings: BTreeMap<(Ino, u64), (Ino, Vec<u8>)>,
    back_links: BTreeSet<(Ino, Ino, Vec<u8>)>,
    extents: BTreeMap<(Ino, u64), ExtentRecord>,
    stripes: BTreeMap<StripeId, Stripe>,
    garbage: BTreeMap<(StripeId, u64), Stripe>,
    /// Each with the directory it was made in, if it never had a name.
    orphans: BTreeMap<Ino, Option<Ino>>,
    with_xattrs: BTreeSet<Ino>,
    births: Vec<Seq>,
    usage: BTreeMap<Account, Usage>,
    tombstones: BTreeSet<StripeId>,
    snapshots: Vec<SnapshotRecord>,
    /// Old records: when each was born and died, and the stripe it points at, if any.
    history: Vec<(Seq, Seq, Option<StripeId>)>,
}

fn le(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn stripe_of(extent: &ExtentRecord) -> Option<StripeId> {
    match extent.place {
        Place::Stripe(id, _) => Some(id),
        Place::Inline(_) => None,
    }
}

impl All {
    fn of(tables: &MemTables) -> Self {
        let mut all = Self::default();
        for (key, value) in tables.iter() {
            all.add(key, value);
        }
        all
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        let (first, second) = (keys::field(key, 1), keys::field(key, 9));
        let ino = Ino(first);
        if b"IDLPEXS".contains(&key[0]) {
            self.births.push(Seq(le(value)));
        }
        match key[0] {
            b'M' => self.state = State::decode(value).expect("state"),
            b'I' => drop(self.inodes.insert(ino, Inode::decode(ino, value).expect("inode"))),
            b'D' => {
                self.dentries.insert((ino, key[9..].into()), Dentry::decode(value).expect("dentry"));
            }
            b'L' => drop(self.listings.insert((ino, second), (Ino(le(&value[8..])), value[16..].into()))),
            b'P' => drop(self.back_links.insert((ino, Ino(second), key[17..].into()))),
            b'E' => {
                self.extents.insert((ino, second), ExtentRecord::decode(value).expect("extent"));
            }
            b'S' => drop(self.stripes.insert(StripeId(first), Stripe::decode(value).expect("stripe"))),
            b'G' => {
                self.garbage.insert((StripeId(second), first), Stripe::decode(value).expect("garbage"));
            }
            b'O' => {
                assert!(matches!(value.len(), 0 | 8), "an orphan of {value:?}");
                self.orphans.insert(ino, (!value.is_empty()).then(|| Ino(keys::field(value, 0))));
            }
            // Of jobs: job.rs.
            b'J' | b'W' => (),
            b'X' => drop(self.with_xattrs.insert(ino)),
            b'Q' => {
                self.usage.insert(Account::User(first as u32), Usage::decode(value).expect("usage"));
            }
            b'U' => {
                self.usage.insert(Account::Tree(ino), Usage::decode(value).expect("usage"));
            }
            b'T' => drop(self.tombstones.insert(StripeId(first))),
            b'V' => self.snapshots.push(SnapshotRecord::decode(value).expect("snapshot")),
            b'H' => {
                let extent = (key[1] == b'E').then(|| ExtentRecord::decode(value).expect("old extent"));
                let (birth, death) = (Seq(le(value)), keys::death(key));
                self.history.push((birth, death, extent.and_then(|extent| stripe_of(&extent))));
            }
            b'C' | b'K' | b'F' => (),
            other => panic!("unknown table {other}"),
        }
    }

    fn counters(&self) {
        assert_eq!(self.state.inodes, self.inodes.len() as u64, "State.inodes");
        let last = self.snapshots.iter().map(|snapshot| snapshot.seq).max();
        assert_eq!(self.state.snapshot, last, "State.snapshot");
        for (birth, death, _) in &self.history {
            assert!(birth < death && *death <= self.state.seq, "an old record of {birth:?} to {death:?}");
        }
        let newest = self.births.iter().max().expect("the root at least");
        assert!(*newest <= self.state.seq, "a record of {newest:?} in {:?}", self.state.seq);
        let nameless: BTreeSet<Ino> =
            self.inodes.values().filter(|inode| inode.attr.nlink == 0).map(|inode| inode.attr.ino).collect();
        assert!(self.orphans.keys().eq(&nameless), "orphans {:?}, without a name {nameless:?}", self.orphans);
        for (ino, dir) in self.orphans.iter().filter_map(|(ino, dir)| Some((ino, (*dir)?))) {
            assert_eq!(self.inodes[ino].attr.kind, FileKind::File, "{ino:?} was made without a name");
            let kind = self.inodes.get(&dir).map_or(FileKind::Dir, |dir| dir.attr.kind);
            assert_eq!(kind, FileKind::Dir, "{ino:?} was made in {dir:?}");
        }
        assert!(self.with_xattrs.iter().all(|ino| self.inodes.contains_key(ino)), "attributes of no inode");
    }

    fn names(&self) {
        let (mut names, mut subdirs) = (BTreeMap::<Ino, u32>::new(), BTreeMap::<Ino, u32>::new());
        for ((parent, name), dentry) in &self.dentries {
            let what = format!("{name:?} in {parent:?}");
            let inode = self.inodes.get(&dentry.ino).unwrap_or_else(|| panic!("{what} names no inode"));
            let dir = self.inodes.get(parent).unwrap_or_else(|| panic!("{what}: no directory"));
            assert_eq!(dir.attr.kind, FileKind::Dir, "{what}");
            let listed = self.listings.get(&(*parent, dentry.cookie));
            assert_eq!(listed, Some(&(dentry.ino, name.clone())), "listing of {what}");
            assert!(self.back_links.contains(&(dentry.ino, *parent, name.clone())), "back link of {what}");
            *names.entry(dentry.ino).or_default() += 1;
            *subdirs.entry(*parent).or_default() += u32::from(inode.attr.kind == FileKind::Dir);
        }
        assert_eq!(self.listings.len(), self.dentries.len(), "listings and dentries");
        assert_eq!(self.back_links.len(), self.dentries.len(), "back links and dentries");
        for (ino, inode) in &self.inodes {
            let names = names.get(ino).copied().unwrap_or(0) + u32::from([ROOT, JOBS].contains(ino));
            let links = match (inode.attr.kind, names) {
                (FileKind::Dir, 1) => 2 + subdirs.get(ino).copied().unwrap_or(0),
                (FileKind::Dir, 2..) => panic!("{ino:?}: a directory with {names} names"),
                _ => names,
            };
            assert_eq!(inode.attr.nlink, links, "links of {ino:?}");
        }
        self.no_ring();
    }

    fn accounts(&self) {
        let mut counted = BTreeMap::<Account, (u64, u64)>::new();
        for inode in self.inodes.values() {
            let around = |tree: &Ino| {
                let usage =
                    self.usage.get(&Account::Tree(*tree)).unwrap_or_else(|| panic!("no tree {tree:?}"));
                Some(usage.parent).filter(|&up| up != Ino(0))
            };
            let trees = std::iter::successors(Some(inode.tree).filter(|&tree| tree != Ino(0)), around);
            for account in trees.map(Account::Tree).chain([Account::User(inode.attr.uid)]) {
                let (bytes, inodes) = counted.entry(account).or_default();
                *bytes += inode.attr.bytes;
                *inodes += 1;
            }
        }
        let kept = self.usage.iter().filter(|(_, u)| u.inodes > 0 || !u.is_limited());
        assert!(kept.map(|(&a, u)| (a, (u.bytes, u.inodes))).eq(counted), "usage: {:?}", self.usage);
        // Below a directory of a tree everything is of it, but for trees in it.
        for ((parent, _), dentry) in &self.dentries {
            let (dir, inode) = (&self.inodes[parent], &self.inodes[&dentry.ino]);
            let own = self.usage.get(&Account::Tree(dentry.ino)).filter(|_| inode.tree == dentry.ino);
            assert_eq!(own.map_or(inode.tree, |own| own.parent), dir.tree, "the tree of {:?}", dentry.ino);
        }
    }

    fn no_ring(&self) {
        let parents: BTreeMap<Ino, Ino> = self.back_links.iter().map(|link| (link.0, link.1)).collect();
        for ino in self.inodes.keys() {
            let up = std::iter::successors(Some(*ino), |at| parents.get(at).copied());
            assert!(up.take(self.inodes.len() + 1).count() <= self.inodes.len(), "{ino:?} is in a ring");
        }
    }

    fn extents(&self) {
        let mut refs: BTreeMap<StripeId, u32> = BTreeMap::new();
        let mut mapped: BTreeMap<Ino, (u64, u64)> = BTreeMap::new();
        for ((ino, off), extent) in &self.extents {
            let inode = self.inodes.get(ino).unwrap_or_else(|| panic!("an extent of {ino:?}, which is gone"));
            let (end, bytes) = mapped.entry(*ino).or_default();
            assert_eq!(inode.attr.kind, FileKind::File, "{ino:?}");
            assert!(extent.len > 0, "{ino:?}: {extent:?} at {off}");
            match &extent.place {
                Place::Stripe(id, at) => {
                    let stripe = self.stripes.get(id).unwrap_or_else(|| panic!("{extent:?}: no stripe"));
                    assert!(at + extent.len <= stripe.len, "{extent:?} in {stripe:?}");
                    *refs.entry(*id).or_default() += 1;
                }
                Place::Inline(bytes) => {
                    assert!(
                        bytes.len() as u64 == extent.len && bytes.len() <= INLINE_BYTES_MAX,
                        "{extent:?}"
                    );
                }
            }
            assert!(*off >= *end, "{ino:?}: {extent:?} at {off} overlaps the one before");
            *end = off + extent.len;
            *bytes += extent.len;
            assert!(*end <= inode.attr.size, "{ino:?}: {extent:?} at {off}, size {}", inode.attr.size);
        }
        for (.., stripe) in &self.history {
            if let Some(stripe) = stripe {
                *refs.entry(*stripe).or_default() += 1;
            }
        }
        for (ino, inode) in &self.inodes {
            assert_eq!(inode.attr.bytes, mapped.get(ino).map_or(0, |m| m.1), "bytes of {ino:?}");
        }
        let counted: BTreeMap<StripeId, u32> = self.stripes.iter().map(|(&id, s)| (id, s.refs)).collect();
        assert_eq!(counted, refs, "references of stripes");
        assert!(self.tombstones.iter().all(|id| !self.stripes.contains_key(id)), "a tombstone of the living");
        let mut dead: Vec<StripeId> = self.garbage.keys().map(|&(id, _)| id).collect();
        assert!(dead.iter().all(|id| !self.stripes.contains_key(id)), "a stripe is dead and alive");
        dead.dedup();
        assert_eq!(dead.len(), self.garbage.len(), "a stripe died twice");
    }
}

/// Panics when the history holds what no snapshot does: after it was pruned.
pub(crate) fn check_pruned(tables: &MemTables) {
    let all = All::of(tables);
    for (birth, death, _) in &all.history {
        let held = all.snapshots.iter().any(|s| *birth <= s.seq && s.seq < *death);
        assert!(held, "a record of {birth:?} to {death:?} is held by nobody");
    }
}

/// Panics when one does not hold.
pub(crate) fn check(tables: &MemTables) {
    let all = All::of(tables);
    all.counters();
    all.accounts();
    all.names();
    all.extents();
}
