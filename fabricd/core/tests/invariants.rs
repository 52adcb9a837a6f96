//! Random commands against a model that keeps names in one map and files as plain vectors, and
//! the invariants between the tables. A failure names its seed and step.

use std::collections::{BTreeMap, BTreeSet};

use kos_core::record::{Dentry, ExtentRecord, Inode, Stripe};
use kos_core::{Changes, Effect, MemTables, apply, initialise, keys, read};
use kos_types::limits::{FILE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_NAME_BYTES_MAX};
use kos_types::{
    Attr, Command, Cred, Error, ExtentPut, FileKind, Ino, Kind, Op, Policy, ROOT, RenameMode, Reply, SetAttr,
    SetSize, Source, StripeId, Time, TimeChange, XattrMode,
};

const SEEDS: u64 = 150;
const STEPS: u64 = 300;
/// Bytes of the largest file.
const FILE_BYTES: u64 = 64;
/// Inodes from which on removals come more often than creations.
const INODES: usize = 12;
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
const KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::File,
    FileKind::File,
    FileKind::Dir,
    FileKind::Dir,
    FileKind::Symlink,
    FileKind::Fifo,
];
const XATTRS: [&[u8]; 5] = [b"user.a", b"user.b", b"user.kos.durability", b"user.kos.ec", b"user.kos.none"];
const VALUES: [&[u8]; 5] = [b"disk", b"scratch", b"4+2", b"17+1", b""];

#[test]
fn random_commands_agree_with_the_model() {
    let mut refused = 0;
    let mut kinds = BTreeSet::new();
    for seed in 1..=SEEDS {
        let mut world = World::new(seed);
        for step in 0..STEPS {
            let op = world.op();
            let context = format!("seed {seed} step {step}: {op:?}");
            kinds.insert(format!("{op:?}").split([' ', '{']).next().map(str::to_owned));
            refused += u64::from(!world.step(op, &context));
            if step % 10 == 9 {
                Records::of(&world.tables).check(&world, &context);
            }
        }
    }
    assert_eq!(kinds.len(), 14, "every operation is tried: {kinds:?}");
    let all = SEEDS * STEPS;
    assert!(refused > all / 10 && refused < all / 2, "{refused} of {all} were refused");
}

/// Names that are there throughout appear once, whatever happens between the pages.
#[test]
fn a_listing_in_pages_shows_a_lasting_name_once() {
    for seed in 1..=SEEDS {
        let mut rng = Rng(seed);
        let mut dir = Pages::new();
        let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let (mut after, mut changes) = (0, 0);
        loop {
            let page = read::list(&dir.tables, ROOT, after, 3).expect("list");
            assert!(page.len() <= 3, "seed {seed}");
            let Some(last) = page.last() else { break };
            assert!(page.is_sorted_by(|a, b| a.cookie < b.cookie), "seed {seed}");
            assert!(page[0].cookie > after, "seed {seed}");
            after = last.cookie;
            for entry in page {
                *seen.entry(entry.name).or_default() += 1;
            }
            // New names go to the end, so the listing ends only when they do.
            for _ in 0..rng.below(5) {
                changes += 1;
                dir.change(&mut rng, changes < 60);
            }
        }
        for name in &dir.lasting {
            assert_eq!(seen.get(name), Some(&1), "seed {seed}: {}", String::from_utf8_lossy(name));
        }
    }
}

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len() as u64) as usize].clone()) }
    }

    fn one<T: Clone, const N: usize>(&mut self, from: &[T; N]) -> T {
        from[self.below(N as u64) as usize].clone()
    }
}

/// Where every byte of a file is; `None` in a hole.
type Data = Vec<Option<(StripeId, u64)>>;

#[derive(Clone)]
struct Node {
    kind: FileKind,
    target: u64,
    data: Data,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What the tables are to mean. Link counts and live stripes are counted, not kept.
#[derive(Clone, Default)]
struct Model {
    names: BTreeMap<(Ino, Vec<u8>), Ino>,
    nodes: BTreeMap<Ino, Node>,
    batch: u64,
    lens: BTreeMap<StripeId, u64>,
    garbage: BTreeSet<(u64, StripeId)>,
}

/// A reply with inodes for attributes.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Attr(Ino),
    Unlinked(Ino),
    Renamed(Ino, Option<Ino>),
    Batch(u64),
}

type Answered = Result<Answer, Kind>;

impl Model {
    fn node(&self, ino: Ino) -> Result<&Node, Kind> {
        self.nodes.get(&ino).ok_or(Kind::Stale)
    }

    fn dir(&self, ino: Ino) -> Result<(), Kind> {
        if self.node(ino)?.kind == FileKind::Dir { Ok(()) } else { Err(Kind::NotDir) }
    }

    fn live_dir(&self, ino: Ino) -> Result<(), Kind> {
        self.dir(ino)?;
        if self.nlink(ino) == 0 { Err(Kind::NotFound) } else { Ok(()) }
    }

    fn file(&mut self, ino: Ino) -> Result<&mut Data, Kind> {
        let node = self.nodes.get_mut(&ino).ok_or(Kind::Stale)?;
        match node.kind {
            FileKind::File => Ok(&mut node.data),
            FileKind::Dir => Err(Kind::IsDir),
            _ => Err(Kind::Invalid),
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.dir(ino).is_ok()
    }

    fn is_empty(&self, dir: Ino) -> bool {
        self.names.keys().all(|(parent, _)| *parent != dir)
    }

    fn nlink(&self, ino: Ino) -> u32 {
        let names = self.names.values().filter(|named| **named == ino).count();
        let subdirs = self.names.iter().filter(|((p, _), named)| *p == ino && self.is_dir(**named)).count();
        let links = match (self.is_dir(ino), names) {
            (true, 0) if ino != ROOT => 0,
            (true, _) => 2 + subdirs,
            (false, names) => names,
        };
        links as u32
    }

    fn is_inside(&self, dir: Ino, top: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == top {
                return true;
            }
            match self.names.iter().find(|(_, named)| **named == at) {
                Some(((up, _), _)) => at = *up,
                None => return false,
            }
        }
    }

    fn entry(&self, parent: Ino, name: &[u8]) -> Result<Ino, Kind> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Kind::NameTooLong);
        }
        self.names.get(&(parent, name.to_vec())).copied().ok_or(Kind::NotFound)
    }

    /// Stripes that a byte of a file is in.
    fn live(&self) -> BTreeSet<StripeId> {
        self.nodes.values().flat_map(|node| node.data.iter().flatten().map(|(id, _)| *id)).collect()
    }

    fn run(&mut self, op: &Op, new: Ino) -> Answered {
        match op {
            Op::Create { parent, name, kind, target, .. } => {
                self.create((*parent, name), *kind, target.len(), new)
            }
            Op::Link { ino, parent, name } => self.link(*ino, (*parent, name)),
            Op::Unlink { parent, name } => self.remove((*parent, name), false),
            Op::Rmdir { parent, name } => self.remove((*parent, name), true),
            Op::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((*parent, name), (*new_parent, new_name), *mode)
            }
            Op::SetAttr { ino, set } => self.set_attr(*ino, set),
            Op::SetXattr { ino, name, value, mode } => self.set_xattr(*ino, name, value, *mode),
            Op::RemoveXattr { ino, name } => {
                let node = self.nodes.get_mut(ino).ok_or(Kind::Stale)?;
                node.xattrs.remove(name).map(|_| Answer::Done).ok_or(Kind::NoAttr)
            }
            Op::Commit { ino, stripes, extents, size_min, .. } => {
                self.commit(*ino, stripes, extents, *size_min)
            }
            Op::Punch { ino, off, len } => {
                let data = self.file(*ino)?;
                let end = end_of(*off, *len)?;
                for (_, byte) in
                    data.iter_mut().enumerate().filter(|(i, _)| (*off..end).contains(&(*i as u64)))
                {
                    *byte = None;
                }
                Ok(Answer::Attr(*ino))
            }
            Op::Clone { from, from_off, to, to_off, len } => {
                self.copy((*from, *from_off), (*to, *to_off), *len)
            }
            Op::Reap { ino } => {
                if self.nodes.contains_key(ino) && self.nlink(*ino) == 0 {
                    self.nodes.remove(ino);
                }
                Ok(Answer::Done)
            }
            Op::OpenBatch => {
                self.batch += 1;
                Ok(Answer::Batch(self.batch))
            }
            Op::Collected { stripes } => {
                self.garbage.retain(|dead| !stripes.contains(dead));
                Ok(Answer::Done)
            }
        }
    }

    fn create(&mut self, at: (Ino, &Vec<u8>), kind: FileKind, target: usize, new: Ino) -> Answered {
        check_name(at.1)?;
        if target > SYMLINK_BYTES_MAX {
            return Err(Kind::NameTooLong);
        }
        self.live_dir(at.0)?;
        if self.entry(at.0, at.1).is_ok() {
            return Err(Kind::Exists);
        }
        self.names.insert((at.0, at.1.clone()), new);
        let node = Node { kind, target: target as u64, data: Data::new(), xattrs: BTreeMap::new() };
        assert!(self.nodes.insert(new, node).is_none(), "{new:?} is in use");
        Ok(Answer::Attr(new))
    }

    fn link(&mut self, ino: Ino, at: (Ino, &Vec<u8>)) -> Answered {
        check_name(at.1)?;
        self.live_dir(at.0)?;
        if self.node(ino)?.kind == FileKind::Dir {
            return Err(Kind::NotPermitted);
        }
        if self.nlink(ino) == 0 {
            return Err(Kind::NotFound);
        }
        if self.entry(at.0, at.1).is_ok() {
            return Err(Kind::Exists);
        }
        self.names.insert((at.0, at.1.clone()), ino);
        Ok(Answer::Attr(ino))
    }

    fn remove(&mut self, at: (Ino, &Vec<u8>), dir: bool) -> Answered {
        self.dir(at.0)?;
        let ino = self.entry(at.0, at.1)?;
        match (dir, self.is_dir(ino)) {
            (true, false) => return Err(Kind::NotDir),
            (false, true) => return Err(Kind::IsDir),
            (true, true) if !self.is_empty(ino) => return Err(Kind::NotEmpty),
            _ => (),
        }
        self.names.remove(&(at.0, at.1.clone()));
        Ok(Answer::Unlinked(ino))
    }

    fn rename(&mut self, from: (Ino, &Vec<u8>), to: (Ino, &Vec<u8>), mode: RenameMode) -> Answered {
        check_name(to.1)?;
        self.live_dir(from.0)?;
        self.live_dir(to.0)?;
        let moved = self.entry(from.0, from.1)?;
        let target = self.entry(to.0, to.1).ok();
        if self.is_dir(moved) && self.is_inside(to.0, moved) {
            return Err(Kind::Invalid);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Kind::Exists),
            (RenameMode::Exchange, None) => return Err(Kind::NotFound),
            (_, Some(target)) if target == moved => return Ok(Answer::Renamed(moved, None)),
            (RenameMode::Exchange, Some(target)) => {
                if self.is_dir(target) && self.is_inside(from.0, target) {
                    return Err(Kind::Invalid);
                }
                self.names.insert((from.0, from.1.clone()), target);
                self.names.insert((to.0, to.1.clone()), moved);
                return Ok(Answer::Renamed(moved, None));
            }
            (_, Some(target)) => match (self.is_dir(moved), self.is_dir(target)) {
                (true, false) => return Err(Kind::NotDir),
                (false, true) => return Err(Kind::IsDir),
                (true, true) if !self.is_empty(target) => return Err(Kind::NotEmpty),
                _ => (),
            },
            (_, None) => (),
        }
        self.names.remove(&(from.0, from.1.clone()));
        self.names.insert((to.0, to.1.clone()), moved);
        Ok(Answer::Renamed(moved, target))
    }

    fn set_attr(&mut self, ino: Ino, set: &SetAttr) -> Answered {
        self.node(ino)?;
        if let Some(SetSize { size }) = set.size {
            let data = self.file(ino)?;
            if size > FILE_BYTES_MAX {
                return Err(Kind::TooLarge);
            }
            data.resize(size as usize, None);
        }
        Ok(Answer::Attr(ino))
    }

    fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Answered {
        if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
            return Err(Kind::Range);
        }
        let fits = match name {
            b"user.kos.durability" => matches!(value, b"disk" | b"scratch"),
            b"user.kos.ec" => value == b"4+2",
            b"user.kos.none" => false,
            _ => true,
        };
        if !fits {
            return Err(Kind::Invalid);
        }
        let node = self.nodes.get_mut(&ino).ok_or(Kind::Stale)?;
        let exists = node.xattrs.contains_key(name);
        match mode {
            XattrMode::Create if exists => return Err(Kind::Exists),
            XattrMode::Replace if !exists => return Err(Kind::NoAttr),
            _ => (),
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(Answer::Done)
    }

    fn commit(
        &mut self,
        ino: Ino,
        stripes: &[(StripeId, Policy, u64)],
        extents: &[ExtentPut],
        size_min: u64,
    ) -> Answered {
        self.file(ino)?;
        if size_min > FILE_BYTES_MAX {
            return Err(Kind::TooLarge);
        }
        let mut unnamed = BTreeSet::new();
        for &(id, _, len) in stripes {
            if id.batch() != self.batch && id.batch() + 1 != self.batch {
                return Err(Kind::Stale);
            }
            if self.live().contains(&id) || !unnamed.insert(id) {
                return Err(Kind::Invalid);
            }
            self.lens.insert(id, len);
        }
        for put in extents {
            let end = end_of(put.off, put.len)?;
            if !self.live().contains(&put.stripe) && !unnamed.contains(&put.stripe) {
                return Err(Kind::Stale);
            }
            if put.len == 0 || put.at.checked_add(put.len).is_none_or(|e| e > self.lens[&put.stripe]) {
                return Err(Kind::Invalid);
            }
            unnamed.remove(&put.stripe);
            let data = self.file(ino)?;
            data.resize(data.len().max(end as usize), None);
            for i in 0..put.len {
                data[(put.off + i) as usize] = Some((put.stripe, put.at + i));
            }
        }
        if !unnamed.is_empty() {
            return Err(Kind::Invalid);
        }
        let data = self.file(ino)?;
        data.resize(data.len().max(size_min as usize), None);
        Ok(Answer::Attr(ino))
    }

    fn copy(&mut self, (from, from_off): (Ino, u64), (to, to_off): (Ino, u64), len: u64) -> Answered {
        let source = self.file(from)?.clone();
        self.file(to)?;
        let (from_end, to_end) = (end_of(from_off, len)?, end_of(to_off, len)?);
        if from_end > source.len() as u64 || from == to && from_off < to_end && to_off < from_end {
            return Err(Kind::Invalid);
        }
        if len > 0 {
            let data = self.file(to)?;
            data.resize(data.len().max(to_end as usize), None);
            data[to_off as usize..to_end as usize]
                .copy_from_slice(&source[from_off as usize..from_end as usize]);
        }
        Ok(Answer::Attr(to))
    }
}

fn check_name(name: &[u8]) -> Result<(), Kind> {
    match name {
        _ if name.len() > NAME_BYTES_MAX => Err(Kind::NameTooLong),
        b"" | b"." | b".." | b"a/b" | b"a\0" => Err(Kind::Invalid),
        _ => Ok(()),
    }
}

fn end_of(off: u64, len: u64) -> Result<u64, Kind> {
    off.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Kind::TooLarge)
}

/// The tables, the model beside them and the source of commands.
struct World {
    rng: Rng,
    tables: MemTables,
    model: Model,
    reaped: Vec<Ino>,
    seq: u64,
    stripes: u64,
    now: Time,
}

impl World {
    fn new(seed: u64) -> Self {
        // From before 1970 on.
        let now = Time { secs: -5, nanos: 0 };
        let mut tables = MemTables::default();
        tables.write(initialise(now));
        let root = Node { kind: FileKind::Dir, target: 0, data: Data::new(), xattrs: BTreeMap::new() };
        let model = Model { nodes: BTreeMap::from([(ROOT, root)]), ..Model::default() };
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { rng, tables, model, reaped: Vec::new(), seq: 0, stripes: 0, now }
    }

    /// Run `op` in both and compare. Answers whether it was accepted.
    fn step(&mut self, op: Op, context: &str) -> bool {
        self.now.secs += i64::from(self.rng.once_in(3));
        let command = Command { now: self.now, op };
        let applied = apply(&self.tables, &command);
        let new = match &applied {
            Ok(applied) => attrs(&applied.reply).first().map_or(Ino(0), |attr| attr.ino),
            Err(_) => Ino(0),
        };
        assert!(!matches!(command.op, Op::Create { .. }) || !self.reaped.contains(&new), "{context}: reused");
        let mut next = self.model.clone();
        let predicted = next.run(&command.op, new);
        assert_eq!(applied.as_ref().map(|a| answer(&a.reply)).map_err(Error::kind), predicted, "{context}");
        let accepted = match applied {
            Ok(applied) => {
                let mut held = self.model.live();
                if let Op::Commit { stripes, .. } = &command.op {
                    held.extend(stripes.iter().map(|(id, ..)| *id));
                }
                let freed: BTreeSet<_> = held.difference(&next.live()).copied().collect();
                assert_eq!(sorted(&applied.effects), freed.iter().copied().collect::<Vec<_>>(), "{context}");
                assert_eq!(entered_garbage(&applied.changes), freed, "{context}");
                let since = u64::try_from(self.now.secs).unwrap_or(0);
                next.garbage.extend(freed.into_iter().map(|id| (since, id)));
                self.reaped.extend(self.model.nodes.keys().filter(|ino| !next.nodes.contains_key(ino)));
                self.model = next;
                self.seq += 1;
                self.tables.write(applied.changes);
                for attr in attrs(&applied.reply) {
                    let kept = read::inode(&self.tables, attr.ino).expect("inode of a reply").attr;
                    assert_eq!(*attr, kept, "{context}");
                }
                true
            }
            Err(_) => false,
        };
        self.compare(context);
        accepted
    }

    /// What reads answer.
    fn compare(&mut self, context: &str) {
        let state = read::state(&self.tables).expect("state");
        assert_eq!((state.seq.0, state.batch), (self.seq, self.model.batch), "{context}");
        assert_eq!(state.inodes, self.model.nodes.len() as u64, "{context}");
        for (&ino, node) in &self.model.nodes {
            let attr = read::inode(&self.tables, ino).expect("inode").attr;
            let bytes = node.data.iter().flatten().count() as u64;
            let size = node.data.len() as u64 + node.target;
            assert_eq!((attr.kind, attr.nlink), (node.kind, self.model.nlink(ino)), "{context}: {ino:?}");
            assert_eq!((attr.size, attr.bytes), (size, bytes), "{context}: {ino:?}");
            let xattrs: Vec<_> = node.xattrs.keys().cloned().collect();
            assert_eq!(read::xattrs(&self.tables, ino).expect("xattrs"), xattrs, "{context}");
            for (name, value) in &node.xattrs {
                assert_eq!(read::xattr(&self.tables, ino, name).as_ref(), Ok(value), "{context}");
            }
            match node.kind {
                FileKind::Dir => self.compare_dir(ino, context),
                FileKind::File => {
                    assert_eq!(content(&self.tables, ino, 0, u64::MAX), node.data, "{context}: {ino:?}");
                    let off = self.rng.below(FILE_BYTES);
                    let len = self.rng.below(FILE_BYTES);
                    let part: Data =
                        node.data.iter().skip(off as usize).take(len as usize).copied().collect();
                    assert_eq!(content(&self.tables, ino, off, len), part, "{context}: {ino:?}");
                }
                _ => (),
            }
        }
        for ino in &self.reaped {
            let gone = read::inode(&self.tables, *ino).map_err(|e| e.kind());
            assert_eq!(gone, Err(Kind::Stale), "{context}");
        }
    }

    fn compare_dir(&self, dir: Ino, context: &str) {
        for name in NAMES {
            let found = read::lookup(&self.tables, dir, name).map(|attr| attr.ino).map_err(|e| e.kind());
            assert_eq!(found, self.model.entry(dir, name), "{context}: {dir:?} {name:?}");
        }
        let listed = read::list(&self.tables, dir, 0, 100).expect("list");
        let listed: BTreeMap<_, _> = listed.into_iter().map(|e| ((dir, e.name), e.attr.ino)).collect();
        let names = self.model.names.iter().filter(|((parent, _), _)| *parent == dir);
        let names: BTreeMap<_, _> = names.map(|(name, ino)| (name.clone(), *ino)).collect();
        assert_eq!(listed, names, "{context}: {dir:?}");
    }
}

/// Making commands.
impl World {
    fn op(&mut self) -> Op {
        let full = self.model.nodes.len() >= INODES;
        match self.rng.below(24) {
            0..=3 if !full => self.create(),
            0 | 1 => {
                let orphans: Vec<_> =
                    self.model.nodes.keys().copied().filter(|ino| self.model.nlink(*ino) == 0).collect();
                let ino = self.rng.pick(&orphans).unwrap_or(ROOT);
                Op::Reap { ino }
            }
            4 => self.create(),
            2 | 5 => Op::Unlink { parent: self.dir(), name: self.name() },
            3 | 6 => Op::Rmdir { parent: self.dir(), name: self.name() },
            7 => Op::Link { ino: self.ino(), parent: self.dir(), name: self.name() },
            8..=10 => {
                let mode = self.rng.one(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ]);
                let (parent, name) = self.present();
                Op::Rename { parent, name, new_parent: self.dir(), new_name: self.name(), mode }
            }
            11 => Op::SetAttr { ino: self.file(), set: self.set() },
            12 => {
                let mode = self.rng.one(&[XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
                Op::SetXattr {
                    ino: self.ino(),
                    name: self.xattr(),
                    value: self.rng.one(&VALUES).to_vec(),
                    mode,
                }
            }
            13 => Op::RemoveXattr { ino: self.ino(), name: self.xattr() },
            14..=17 => self.commit(),
            18 => {
                let (off, len) = self.range();
                Op::Punch { ino: self.file(), off, len }
            }
            19 | 20 => {
                let (from_off, len) = self.range();
                let len = len / 2;
                let to_off =
                    if self.rng.once_in(40) { u64::MAX - 3 } else { self.rng.below(FILE_BYTES - len) };
                Op::Clone { from: self.file(), from_off, to: self.file(), to_off, len }
            }
            21 => Op::Reap { ino: self.ino() },
            22 => Op::OpenBatch,
            _ => self.collected(),
        }
    }

    fn create(&mut self) -> Op {
        let kind = self.rng.one(&KINDS);
        let target = match (kind, self.rng.below(20)) {
            (FileKind::Symlink, 0) => vec![b't'; SYMLINK_BYTES_MAX + 1],
            (FileKind::Symlink, n) => vec![b't'; n as usize],
            _ => Vec::new(),
        };
        let mode = self.rng.below(0o10000) as u32;
        let cred = Cred { uid: self.rng.below(3) as u32, gid: self.rng.below(3) as u32 };
        Op::Create { parent: self.dir(), name: self.name(), kind, mode, cred, rdev: 0, target }
    }

    fn commit(&mut self) -> Op {
        let mut stripes = Vec::new();
        let live: Vec<_> = self.model.live().into_iter().collect();
        for _ in 0..self.rng.below(3) {
            self.stripes += 1;
            let batch = match self.rng.below(60) {
                0 => self.model.batch + 1,
                1 => self.model.batch.saturating_sub(2),
                2..=20 => self.model.batch.saturating_sub(1),
                _ => self.model.batch,
            };
            let id = StripeId::in_batch(batch, self.stripes).expect("within a batch");
            stripes.push((id, Policy::default(), 1 + self.rng.below(40)));
        }
        if self.rng.once_in(60) {
            let again = self.rng.pick(&live).or_else(|| stripes.first().map(|s| s.0));
            stripes.extend(again.map(|id| (id, Policy::default(), 40)));
        }
        let mut named: Vec<StripeId> = stripes.iter().map(|s| s.0).collect();
        if self.rng.once_in(30) {
            named.pop();
        }
        for _ in 0..self.rng.below(3) {
            named.extend(self.rng.pick(&live));
            named.extend(self.rng.pick(&stripes).map(|s| s.0));
        }
        if self.rng.once_in(40) {
            named.push(StripeId(u64::MAX));
        }
        let extents = named.into_iter().map(|stripe| self.put(stripe, &stripes)).collect();
        let size_min = if self.rng.once_in(60) { FILE_BYTES_MAX + 1 } else { self.rng.below(FILE_BYTES) };
        let mtime = self.rng.once_in(2).then_some(self.now);
        Op::Commit { ino: self.file(), stripes, extents, size_min, mtime }
    }

    fn put(&mut self, stripe: StripeId, new: &[(StripeId, Policy, u64)]) -> ExtentPut {
        let known = new.iter().find(|s| s.0 == stripe).map(|s| s.2);
        let whole = known.or_else(|| self.model.lens.get(&stripe).copied()).unwrap_or(9);
        let at = self.rng.below(whole);
        let len = 1 + self.rng.below(whole - at);
        let off = self.rng.below(FILE_BYTES - len);
        match self.rng.below(80) {
            0 => ExtentPut { off, len: 0, stripe, at },
            1 => ExtentPut { off, len, stripe, at: whole },
            2 => ExtentPut { off: FILE_BYTES_MAX, len, stripe, at },
            3 => ExtentPut { off, len, stripe, at: u64::MAX },
            _ => ExtentPut { off, len, stripe, at },
        }
    }

    fn collected(&mut self) -> Op {
        let before = (self.now.secs + self.rng.below(3) as i64).max(0) as u64;
        let dead = read::garbage(&self.tables, before, 4).expect("garbage");
        let mut stripes: Vec<_> = dead.into_iter().map(|(since, id, _)| (since, id)).collect();
        stripes.push((before, StripeId(7 << 40)));
        Op::Collected { stripes }
    }

    fn set(&mut self) -> SetAttr {
        let size = match self.rng.below(20) {
            0 => None,
            1 => Some(SetSize { size: FILE_BYTES_MAX + 1 }),
            _ => Some(SetSize { size: self.rng.below(FILE_BYTES + 1) }),
        };
        let mut small = || self.rng.once_in(4).then_some(5);
        let (mode, uid, gid) = (small(), small(), small());
        let mtime = mode.map(|_| TimeChange::Now);
        let atime = uid.map(|_| TimeChange::Set(Time::default()));
        SetAttr { mode, uid, gid, size, atime, mtime, kill_suidgid: self.rng.once_in(2) }
    }

    /// A range that may reach beyond the end, and seldom beyond any end.
    fn range(&mut self) -> (u64, u64) {
        match self.rng.below(40) {
            0 => (u64::MAX - 3, 10),
            1 => (self.rng.below(10), FILE_BYTES_MAX),
            _ => (self.rng.below(FILE_BYTES / 2), self.rng.below(FILE_BYTES)),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        match self.rng.below(80) {
            0 => self.rng.one(&[&b""[..], b".", b"..", b"a/b", b"a\0"]).to_vec(),
            1 => vec![b'x'; NAME_BYTES_MAX + 1],
            _ => self.rng.one(&NAMES).to_vec(),
        }
    }

    fn xattr(&mut self) -> Vec<u8> {
        match self.rng.below(40) {
            0 => Vec::new(),
            1 => vec![b'x'; XATTR_NAME_BYTES_MAX + 1],
            _ => self.rng.one(&XATTRS).to_vec(),
        }
    }

    /// Mostly a name that is there.
    fn present(&mut self) -> (Ino, Vec<u8>) {
        let names: Vec<_> = self.model.names.keys().cloned().collect();
        if self.rng.once_in(6) { None } else { self.rng.pick(&names) }
            .unwrap_or_else(|| (self.dir(), self.name()))
    }

    /// Mostly a directory with a name.
    fn dir(&mut self) -> Ino {
        let named = |ino: &Ino| self.model.is_dir(*ino) && self.model.nlink(*ino) > 0;
        let dirs: Vec<_> = self.model.nodes.keys().copied().filter(named).collect();
        if self.rng.once_in(15) { self.ino() } else { self.rng.pick(&dirs).unwrap_or(ROOT) }
    }

    /// Mostly a file, with a name or without.
    fn file(&mut self) -> Ino {
        let files = self.model.nodes.iter().filter(|(_, node)| node.kind == FileKind::File);
        let files: Vec<_> = files.map(|(ino, _)| *ino).collect();
        if self.rng.once_in(15) { None } else { self.rng.pick(&files) }.unwrap_or_else(|| self.ino())
    }

    /// Any inode, seldom one that is gone or never was.
    fn ino(&mut self) -> Ino {
        let all: Vec<_> = self.model.nodes.keys().copied().collect();
        match self.rng.below(20) {
            0 => Ino(1 << 40),
            1 => self.rng.pick(&self.reaped).unwrap_or(ROOT),
            _ => self.rng.pick(&all).unwrap_or(ROOT),
        }
    }
}

fn answer(reply: &Reply) -> Answer {
    match reply {
        Reply::Done => Answer::Done,
        Reply::Attr(attr) => Answer::Attr(attr.ino),
        Reply::Unlinked(attr) => Answer::Unlinked(attr.ino),
        Reply::Renamed { moved, replaced } => Answer::Renamed(moved.ino, replaced.as_ref().map(|r| r.ino)),
        Reply::Batch(batch) => Answer::Batch(*batch),
    }
}

fn attrs(reply: &Reply) -> Vec<&Attr> {
    match reply {
        Reply::Done | Reply::Batch(_) => Vec::new(),
        Reply::Attr(attr) | Reply::Unlinked(attr) => vec![attr],
        Reply::Renamed { moved, replaced } => [moved].into_iter().chain(replaced).collect(),
    }
}

fn sorted(effects: &[Effect]) -> Vec<StripeId> {
    let mut out: Vec<_> = effects.iter().map(|Effect::Free(id)| *id).collect();
    out.sort();
    out
}

fn entered_garbage(changes: &Changes) -> BTreeSet<StripeId> {
    let entered = changes.iter().filter(|(key, value)| key[0] == b'G' && value.is_some());
    entered.map(|(key, _)| StripeId(keys::field(key, 9))).collect()
}

/// What `read::extents` says, byte by byte.
fn content(tables: &MemTables, ino: Ino, off: u64, len: u64) -> Data {
    let map = read::extents(tables, ino, off, len).expect("extents");
    let mut data = Data::new();
    for extent in map.extents {
        assert_eq!(extent.off, off + data.len() as u64, "extents without a gap");
        assert!(extent.len > 0, "no empty extent");
        data.extend((0..extent.len).map(|i| match extent.source {
            Source::Hole => None,
            Source::Stripe(id, at) => Some((id, at + i)),
        }));
    }
    data
}

/// Every record of the tables, by table.
#[derive(Default)]
struct Records {
    inodes: BTreeMap<Ino, Inode>,
    dentries: BTreeSet<(Ino, u64, Ino, Vec<u8>)>,
    listings: BTreeSet<(Ino, u64, Ino, Vec<u8>)>,
    back_links: BTreeSet<(Ino, Ino, Vec<u8>)>,
    extents: Vec<(Ino, u64, ExtentRecord)>,
    xattrs: BTreeSet<(Ino, Vec<u8>)>,
    stripes: BTreeMap<StripeId, Stripe>,
    orphans: BTreeSet<Ino>,
    garbage: BTreeSet<(u64, StripeId)>,
}

impl Records {
    fn of(tables: &MemTables) -> Self {
        let mut out = Self::default();
        for (key, value) in tables.iter() {
            let first = || Ino(keys::field(key, 1));
            let second = || keys::field(key, 9);
            match key[0] {
                b'M' => assert_eq!(key, keys::STATE),
                b'I' => {
                    out.inodes.insert(first(), Inode::decode(first(), value).expect("I"));
                }
                b'D' => {
                    let dentry = Dentry::decode(value).expect("D");
                    out.dentries.insert((first(), dentry.cookie, dentry.ino, key[9..].to_vec()));
                }
                b'L' => {
                    let (ino, name) = value.split_first_chunk().expect("L");
                    out.listings.insert((first(), second(), Ino(u64::from_le_bytes(*ino)), name.to_vec()));
                }
                b'P' => {
                    out.back_links.insert((first(), Ino(second()), key[17..].to_vec()));
                }
                b'E' => out.extents.push((first(), second(), ExtentRecord::decode(value).expect("E"))),
                b'X' => {
                    out.xattrs.insert((first(), key[9..].to_vec()));
                }
                b'S' => {
                    out.stripes.insert(StripeId(first().0), Stripe::decode(value).expect("S"));
                }
                b'O' => {
                    out.orphans.insert(first());
                }
                b'G' => {
                    out.garbage.insert((first().0, StripeId(second())));
                }
                _ => panic!("a record of no table: {key:?}"),
            }
        }
        out
    }

    fn check(&self, world: &World, context: &str) {
        self.check_names(context);
        self.check_files(context);
        self.check_stripes(context);
        let state = read::state(&world.tables).expect("state");
        assert_eq!(state.inodes, self.inodes.len() as u64, "{context}");
        assert!(self.inodes.values().all(|inode| inode.birth <= state.seq), "{context}");
        assert!(self.inodes.keys().eq(world.model.nodes.keys()), "{context}");
        assert_eq!(self.garbage, world.model.garbage, "{context}");
        assert!(self.stripes.keys().eq(&world.model.live()), "{context}");
        let orphans: Vec<_> = self.orphans.iter().copied().collect();
        assert_eq!(read::orphans(&world.tables).expect("orphans"), orphans, "{context}");
    }

    /// Each D has one L and one P that agree, and none has more; link counts and orphans follow.
    fn check_names(&self, context: &str) {
        assert_eq!(self.dentries, self.listings, "{context}");
        let names = self.dentries.iter().map(|(parent, _, ino, name)| (*ino, *parent, name.clone()));
        assert_eq!(names.collect::<BTreeSet<_>>(), self.back_links, "{context}");
        assert_eq!(self.dentries.len(), self.back_links.len(), "{context}");
        let is_dir = |ino: &Ino| self.inodes[ino].attr.kind == FileKind::Dir;
        for (parent, _, ino, _) in &self.dentries {
            assert!(is_dir(parent) && self.inodes.contains_key(ino), "{context}: {parent:?} {ino:?}");
            assert!(*ino != ROOT && self.inodes[parent].attr.nlink > 0, "{context}: {parent:?} {ino:?}");
        }
        for (ino, inode) in &self.inodes {
            let links = self.dentries.iter().filter(|(_, _, named, _)| named == ino).count();
            let subdirs =
                self.dentries.iter().filter(|(parent, _, named, _)| parent == ino && is_dir(named)).count();
            let expected = match (is_dir(ino), links) {
                (false, links) => links,
                (true, 0) if *ino != ROOT => 0,
                (true, links) => {
                    assert_eq!(links, usize::from(*ino != ROOT), "{context}: {ino:?} has one name");
                    assert!(self.reaches_root(*ino), "{context}: {ino:?} is in a loop");
                    2 + subdirs
                }
            };
            assert_eq!(inode.attr.nlink as usize, expected, "{context}: {ino:?}");
            assert_eq!(self.orphans.contains(ino), expected == 0, "{context}: {ino:?}");
        }
        assert!(self.orphans.iter().all(|ino| self.inodes.contains_key(ino)), "{context}");
        assert!(self.xattrs.iter().all(|(ino, _)| self.inodes.contains_key(ino)), "{context}");
    }

    fn reaches_root(&self, dir: Ino) -> bool {
        let mut at = dir;
        for _ in 0..=self.inodes.len() {
            match self.dentries.iter().find(|(_, _, named, _)| *named == at) {
                Some((up, ..)) => at = *up,
                None => return at == ROOT,
            }
        }
        false
    }

    /// Extents lie apart and inside their files, which count their bytes.
    fn check_files(&self, context: &str) {
        let mut bytes: BTreeMap<Ino, u64> = BTreeMap::new();
        for (ino, off, extent) in &self.extents {
            let attr = &self.inodes[ino].attr;
            assert_eq!(attr.kind, FileKind::File, "{context}: {ino:?}");
            assert!(extent.len > 0 && off + extent.len <= attr.size, "{context}: {ino:?} at {off}");
            *bytes.entry(*ino).or_default() += extent.len;
        }
        for pair in self.extents.windows(2) {
            let apart = pair[0].0 != pair[1].0 || pair[0].1 + pair[0].2.len <= pair[1].1;
            assert!(apart, "{context}: {pair:?}");
        }
        for (ino, inode) in &self.inodes {
            assert_eq!(inode.attr.bytes, bytes.get(ino).copied().unwrap_or(0), "{context}: {ino:?}");
        }
    }

    /// A stripe counts the extents in it, lives as long as there are any, and dies once.
    fn check_stripes(&self, context: &str) {
        let mut refs: BTreeMap<StripeId, u32> = BTreeMap::new();
        for (.., extent) in &self.extents {
            *refs.entry(extent.stripe).or_default() += 1;
            assert!(extent.at + extent.len <= self.stripes[&extent.stripe].len, "{context}: {extent:?}");
        }
        let counted: BTreeMap<_, _> = self.stripes.iter().map(|(id, stripe)| (*id, stripe.refs)).collect();
        assert_eq!(counted, refs, "{context}");
        let dead: BTreeSet<_> = self.garbage.iter().map(|(_, id)| *id).collect();
        assert_eq!(dead.len(), self.garbage.len(), "{context}: a stripe died twice");
        assert!(dead.iter().all(|id| !self.stripes.contains_key(id)), "{context}");
    }
}

/// The root with names that last, others that come and go, and a directory beside.
struct Pages {
    tables: MemTables,
    lasting: Vec<Vec<u8>>,
    passing: Vec<(Ino, Vec<u8>)>,
    beside: Ino,
    made: u64,
}

impl Pages {
    fn new() -> Self {
        let mut tables = MemTables::default();
        tables.write(initialise(Time::default()));
        let mut out = Self { tables, lasting: Vec::new(), passing: Vec::new(), beside: ROOT, made: 0 };
        for i in 0..12 {
            let name = format!("lasting{i}").into_bytes();
            let ino = out.create(ROOT, &name, if i == 5 { FileKind::Dir } else { FileKind::File });
            if i == 5 {
                out.beside = ino;
            }
            out.lasting.push(name);
            out.make(ROOT);
        }
        out
    }

    fn run(&mut self, op: Op) -> Reply {
        let context = format!("{op:?}");
        let applied = apply(&self.tables, &Command { now: Time::default(), op }).expect(&context);
        self.tables.write(applied.changes);
        applied.reply
    }

    fn create(&mut self, parent: Ino, name: &[u8], kind: FileKind) -> Ino {
        let cred = Cred { uid: 0, gid: 0 };
        let (name, target) = (name.to_vec(), Vec::new());
        match self.run(Op::Create { parent, name, kind, mode: 0o644, cred, rdev: 0, target }) {
            Reply::Attr(attr) => attr.ino,
            other => panic!("create: {other:?}"),
        }
    }

    fn make(&mut self, parent: Ino) {
        self.made += 1;
        let name = format!("passing{}", self.made).into_bytes();
        self.create(parent, &name, FileKind::File);
        self.passing.push((parent, name));
    }

    /// One change that takes no lasting name away; `grow` allows a new name at the end.
    fn change(&mut self, rng: &mut Rng, grow: bool) {
        let files: Vec<_> = self.lasting.iter().filter(|name| *name != b"lasting5").cloned().collect();
        let lasting = rng.pick(&files).expect("lasting names");
        let index = rng.below(self.passing.len().max(1) as u64) as usize;
        let parent = rng.one(&[ROOT, self.beside]);
        let (mode, to) = match rng.below(7) {
            0 | 1 if grow => return self.make(parent),
            0..=2 => {
                if let Some((parent, name)) = self.passing.get(index).cloned() {
                    self.passing.swap_remove(index);
                    self.run(Op::Unlink { parent, name });
                }
                return;
            }
            3 | 4 => (RenameMode::Replace, Some(lasting)),
            5 => (RenameMode::Exchange, Some(lasting)),
            _ if grow => (RenameMode::NoReplace, None),
            _ => return,
        };
        let Some((from, name)) = self.passing.get(index).cloned() else { return };
        match (mode, to) {
            (_, Some(new_name)) => {
                if mode == RenameMode::Replace {
                    self.passing.swap_remove(index);
                }
                self.run(Op::Rename { parent: from, name, new_parent: ROOT, new_name, mode });
            }
            (_, None) => {
                self.made += 1;
                let new_name = format!("passing{}", self.made).into_bytes();
                self.passing[index] = (parent, new_name.clone());
                self.run(Op::Rename { parent: from, name, new_parent: parent, new_name, mode });
            }
        }
    }
}
