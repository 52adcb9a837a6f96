//! Random commands over a few names and bytes, so that they meet; most succeed.

use kos_types::{
    Cred, ExtentPut, FileKind, Geometry, Ino, Op, Policy, ROOT, RenameMode, SetAttr, SetSize, StripeId, Time,
    TimeChange, XattrMode,
};

use crate::rng::Rng;
use crate::spec::Spec;

/// Writes are below this byte.
const BYTES: u64 = 64;
const KINDS: [FileKind; 11] = [
    FileKind::File,
    FileKind::File,
    FileKind::File,
    FileKind::Dir,
    FileKind::Dir,
    FileKind::Dir,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDev,
    FileKind::BlockDev,
];
const XATTRS: [(&[u8], &[u8]); 12] = [
    (b"user.a", b""),
    (b"user.a", b"other"),
    (b"user.b", b"value"),
    (b"user.kos.ec", b"1+0"),
    (b"user.kos.ec", b"17+0"),
    (b"user.kos.durability", b"memory"),
    (b"user.kos.durability", b"Disk"),
    (b"user.kos.seal", b"1"),
    (b"user.kos.seal", b"0"),
    (b"user.kos.seal", b"on-close"),
    (b"user.kos.unknown", b""),
    (b"", b""),
];

#[derive(Debug)]
pub(crate) struct Ops {
    rng: Rng,
    /// Inodes that ever were.
    inos: Vec<Ino>,
    /// Stripes of the id batches so far.
    counter: u64,
    /// A snapshot was dropped.
    prune: bool,
}

impl Ops {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), inos: vec![ROOT], counter: 0, prune: false }
    }

    pub(crate) fn created(&mut self, ino: Ino) {
        self.inos.push(ino);
    }

    pub(crate) fn time(&mut self) -> Time {
        let secs = if self.rng.one_in(20) { -5 } else { self.rng.within(0..4).cast_signed() };
        Time { secs, nanos: self.rng.within(0..1_000_000_000) as u32 }
    }

    pub(crate) fn next(&mut self, spec: &Spec) -> Op {
        if std::mem::take(&mut self.prune) {
            return Op::Prune { from: Vec::new(), max: u32::MAX };
        }
        match self.rng.within(0..100) {
            0..20 => self.create(spec),
            20..22 => self.create_unnamed(spec),
            22..27 => Op::Link { ino: self.linked(spec), parent: self.dir(spec), name: self.name() },
            27..33 => {
                let (parent, name) = self.entry(spec);
                Op::Unlink { parent, name }
            }
            33..38 => {
                let (parent, name) = self.entry(spec);
                Op::Rmdir { parent, name }
            }
            38..50 => {
                let ((parent, name), (new_parent, new_name)) = (self.entry(spec), self.entry(spec));
                let mode = self.of(&[RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
                Op::Rename { parent, name, new_parent, new_name, mode }
            }
            50..58 => self.set_attr(spec),
            58..64 => self.xattr(spec),
            64..83 => self.commit(spec),
            83..87 => Op::Punch { ino: self.file(spec), off: self.offset(), len: self.rng.within(0..30) },
            87..93 => self.copy(spec),
            93..95 => Op::Reap { ino: self.orphan(spec) },
            95 => Op::OpenBatch,
            96..98 => self.snapshot(spec),
            _ => self.collected(spec),
        }
    }

    /// Few at a time, or everything is kept for ever.
    fn snapshot(&mut self, spec: &Spec) -> Op {
        self.prune = spec.snapshots.len() > 2 || self.rng.one_in(3);
        if self.prune {
            let names: Vec<&Vec<u8>> = spec.snapshots.values().map(|(name, _)| name).collect();
            let wrong = self.rng.one_in(10);
            let known = self.rng.pick(&names).filter(|_| !wrong).map(|name| (*name).clone());
            return Op::DropSnapshot { name: known.unwrap_or_else(|| self.name()) };
        }
        Op::TakeSnapshot { name: self.name() }
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        *self.rng.pick(from).expect("something to choose from")
    }

    /// A directory at most two below the root, or whatever once was.
    fn dir(&mut self, spec: &Spec) -> Ino {
        if self.rng.one_in(15) {
            return if self.rng.one_in(2) { self.orphan(spec) } else { self.of(&self.inos.clone()) };
        }
        let mut at = ROOT;
        for _ in 0..self.rng.within(0..3) {
            let names = spec.nodes.get(&at).map_or(&[][..], |dir| &dir.names);
            let dirs: Vec<Ino> = names.iter().map(|name| name.1).filter(|&ino| spec.is_dir(ino)).collect();
            at = self.rng.pick(&dirs).copied().unwrap_or(at);
        }
        at
    }

    fn name(&mut self) -> Vec<u8> {
        if self.rng.one_in(60) {
            let bad = [&b""[..], b".", b"..", b"a/b", b"a\0"].map(<[u8]>::to_vec);
            return self.rng.pick(&bad).cloned().unwrap_or_else(|| vec![b'x'; 256]);
        }
        if self.rng.one_in(200) {
            return vec![b'x'; 255 + self.rng.within(0..2) as usize];
        }
        vec![self.of(b"abcde")]
    }

    /// A directory and a name, mostly one in it.
    fn entry(&mut self, spec: &Spec) -> (Ino, Vec<u8>) {
        let dir = self.dir(spec);
        let names = spec.nodes.get(&dir).map_or(&[][..], |dir| &dir.names);
        match self.rng.pick(names) {
            Some((name, _)) if !self.rng.one_in(3) => (dir, name.clone()),
            _ => (dir, self.name()),
        }
    }

    fn any(&mut self, spec: &Spec) -> Ino {
        if self.rng.one_in(15) {
            return self.of(&self.inos.clone());
        }
        let alive: Vec<Ino> = spec.nodes.keys().copied().collect();
        self.of(&alive)
    }

    fn file(&mut self, spec: &Spec) -> Ino {
        let files = spec.nodes.values().filter(|node| node.attr.kind == FileKind::File);
        let files: Vec<Ino> = files.map(|node| node.attr.ino).take(8).collect();
        if files.is_empty() || self.rng.one_in(20) { self.any(spec) } else { self.of(&files) }
    }

    fn orphan(&mut self, spec: &Spec) -> Ino {
        let orphans: Vec<Ino> = spec.nodes.keys().copied().filter(|&ino| spec.nlink(ino) == 0).collect();
        if orphans.is_empty() || self.rng.one_in(10) { self.any(spec) } else { self.of(&orphans) }
    }

    fn create(&mut self, spec: &Spec) -> Op {
        let kind = self.of(&KINDS);
        let is_symlink = kind == FileKind::Symlink;
        let target = if self.rng.one_in(20) { vec![b't'; 4096] } else { b"a/b".to_vec() };
        Op::Create {
            parent: self.dir(spec),
            name: self.name(),
            kind,
            mode: self.mode(),
            umask: self.rng.within(0..0o1000) as u32,
            cred: Cred { uid: self.rng.within(0..3) as u32, gid: self.rng.within(0..3) as u32 },
            rdev: if kind == FileKind::CharDev { 0x103 } else { 0 },
            target: if is_symlink { target } else { Vec::new() },
        }
    }

    fn create_unnamed(&mut self, spec: &Spec) -> Op {
        let cred = Cred { uid: self.rng.within(0..3) as u32, gid: self.rng.within(0..3) as u32 };
        let umask = self.rng.within(0..0o1000) as u32;
        let parent = if self.rng.one_in(10) { self.removed_dir(spec) } else { self.dir(spec) };
        Op::CreateUnnamed { parent, mode: self.mode(), umask, cred }
    }

    fn removed_dir(&mut self, spec: &Spec) -> Ino {
        let dirs = spec.nodes.keys().copied().filter(|&ino| spec.is_dir(ino) && spec.nlink(ino) == 0);
        let dirs: Vec<Ino> = dirs.collect();
        if dirs.is_empty() { self.dir(spec) } else { self.of(&dirs) }
    }

    /// Something to be linked: often what has no name.
    fn linked(&mut self, spec: &Spec) -> Ino {
        if self.rng.one_in(3) { self.orphan(spec) } else { self.any(spec) }
    }

    fn mode(&mut self) -> u32 {
        self.rng.within(0..0o10000) as u32
    }

    fn offset(&mut self) -> u64 {
        if self.rng.one_in(50) { u64::MAX - self.rng.within(0..3) } else { self.rng.within(0..BYTES) }
    }

    fn set_attr(&mut self, spec: &Spec) -> Op {
        let mut set = SetAttr { kill_suidgid: self.rng.one_in(4), ..SetAttr::default() };
        let times = [None, Some(TimeChange::Now), Some(TimeChange::Set(self.time()))];
        (set.atime, set.mtime) = (self.of(&times), self.of(&times));
        if self.rng.one_in(2) {
            set.size = Some(SetSize { size: self.offset() });
            return Op::SetAttr { ino: self.file(spec), set };
        }
        set.mode = self.rng.one_in(3).then(|| self.mode());
        set.uid = self.rng.one_in(3).then_some(3);
        set.gid = self.rng.one_in(3).then_some(4);
        Op::SetAttr { ino: self.any(spec), set }
    }

    fn xattr(&mut self, spec: &Spec) -> Op {
        // Mostly the same few, so that names are set twice.
        let ino = if self.rng.one_in(3) { self.any(spec) } else { self.file(spec) };
        let (name, value) = self.of(&XATTRS);
        if self.rng.one_in(3) {
            let set: Vec<_> = spec.nodes.get(&ino).map_or_else(Vec::new, |n| n.xattrs.keys().collect());
            let name = self.rng.pick(&set).map_or(name, |name| name.as_slice());
            return Op::RemoveXattr { ino, name: name.into() };
        }
        let mode = self.of(&[XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
        let value = if self.rng.one_in(50) { vec![0; 65537] } else { value.into() };
        Op::SetXattr { ino, name: name.into(), value, mode }
    }

    /// An id never used before: the node hands each out once and lets each be committed once, so
    /// that one of a dead stripe does not come back. One that lives may.
    fn stripe_id(&mut self, spec: &Spec) -> StripeId {
        let live: Vec<StripeId> = spec.stripes.keys().copied().collect();
        if let (true, Some(id)) = (self.rng.one_in(40), self.rng.pick(&live)) {
            return *id;
        }
        self.counter += 1;
        let late = if self.rng.one_in(40) { 2 } else { self.rng.within(0..2) };
        let batch = if self.rng.one_in(60) { spec.batch + 1 } else { spec.batch.saturating_sub(late) };
        StripeId::in_batch(batch, self.counter).expect("far below the batch's end")
    }

    fn commit(&mut self, spec: &Spec) -> Op {
        let ino = self.file(spec);
        let mut stripes = Vec::new();
        for _ in 0..self.of(&[0, 1, 1, 1, 2, 2, 3]) {
            let geometry = Geometry::new(self.rng.within(1..17) as u8, 2).expect("in range");
            let policy = Policy { geometry, ..Policy::default() };
            stripes.push((self.stripe_id(spec), policy, self.rng.within(1..25)));
        }
        let mut extents = Vec::new();
        let old: Vec<_> = spec.stripes.iter().map(|(&id, &len)| (id, len)).collect();
        let new: Vec<_> = stripes.iter().map(|&(id, _, len)| (id, len)).collect();
        // Once for each new stripe, rarely without, then any.
        for (id, len) in &new {
            if !self.rng.one_in(40) {
                extents.push(self.extent(*id, *len));
            }
        }
        for _ in 0..self.rng.within(0..4) {
            let known = if self.rng.one_in(3) { &old } else { &new };
            if let Some(&(id, len)) = self.rng.pick(known) {
                extents.push(self.extent(id, len));
            }
        }
        if let (true, Some(&(_, dead))) = (self.rng.one_in(40), spec.garbage.first()) {
            extents.push(self.extent(dead, 1));
        }
        let size_min = if self.rng.one_in(2) { self.offset() } else { 0 };
        let mtime = self.rng.one_in(2).then(|| self.time());
        let holes = (0..self.rng.within(0..3)).map(|_| (self.offset(), self.rng.within(0..BYTES))).collect();
        let inline = (0..self.of(&[0, 0, 0, 1, 1, 2])).map(|_| self.inline()).collect();
        Op::Commit { ino, stripes, holes, extents, inline, size_min, mtime }
    }

    /// A part of a stripe somewhere in a file; rarely more than the stripe has.
    fn extent(&mut self, stripe: StripeId, stripe_len: u64) -> ExtentPut {
        let at = self.rng.within(0..stripe_len);
        let beyond = u64::from(self.rng.one_in(60));
        let len = if self.rng.one_in(100) { 0 } else { self.rng.within(1..stripe_len - at + 1) + beyond };
        let off = if self.rng.one_in(100) { u64::MAX - 2 } else { self.rng.within(0..BYTES) };
        ExtentPut { off, len, stripe, at }
    }

    /// Bytes for the metadata; rarely none, or beyond what may be there.
    fn inline(&mut self) -> (u64, Vec<u8>) {
        let off = if self.rng.one_in(60) { 4090 } else { self.rng.within(0..BYTES) };
        let len = if self.rng.one_in(100) { 0 } else { self.rng.within(1..20) };
        (off, (0..len).map(|_| self.rng.within(0..256) as u8).collect())
    }

    fn copy(&mut self, spec: &Spec) -> Op {
        let from = self.file(spec);
        let to = if self.rng.one_in(3) { from } else { self.file(spec) };
        let size = spec.nodes.get(&from).map_or(0, |node| node.attr.size.min(BYTES));
        let from_off = self.rng.within(0..size + 1);
        let len = self.rng.within(0..size - from_off + 1) + u64::from(self.rng.one_in(20));
        Op::Clone { from, from_off, to, to_off: self.offset(), len }
    }

    fn collected(&mut self, spec: &Spec) -> Op {
        let stripes = spec.garbage.iter().copied().filter(|_| self.rng.one_in(2)).collect();
        Op::Collected { stripes }
    }
}
