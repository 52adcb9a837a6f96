//! Random changes of names against a tree in memory: on the filesystem without a mount, and through one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use kos_types::{FileKind, Ino, ROOT, RenameMode, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Live, Model, Rng, put, read, root, unmounted};
use crate::fs::Fs;

/// So few that most operations meet something.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Entries of a listing that are asked for at once.
const PAGE: usize = 3;

/// Below the tree's top, `""`; a name in it is `"/a"`.
type Name = (String, &'static str);

#[derive(Debug, Clone)]
enum Op {
    File(Name, Vec<u8>),
    Dir(Name),
    Symlink(Name, String),
    Link(Name, Name),
    Unlink(Name),
    Rmdir(Name),
    Rename(Name, Name, RenameMode),
}

fn path((dir, name): &Name) -> String {
    format!("{dir}/{name}")
}

/// What stat and its kin show.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: FileKind,
    nlink: u64,
    /// A file's bytes, or where a symbolic link leads.
    bytes: Vec<u8>,
}

/// What is tested.
trait Target {
    /// An errno when it fails.
    fn change(&mut self, op: &Op) -> std::result::Result<(), i32>;
    /// With the inode's number.
    fn see(&mut self, path: &str) -> Option<(Seen, u64)>;
    fn list(&mut self, dir: &str) -> Vec<(String, u64)>;
    /// Forget what is cached.
    fn restart(&mut self);
}

/// An inode of the tree, which may have several names.
#[derive(Debug, Clone)]
struct Node {
    kind: FileKind,
    bytes: Vec<u8>,
    /// What the target calls it.
    ino: Option<u64>,
}

/// Every path and the number of its inode in `nodes`.
#[derive(Debug, Default)]
struct Spec {
    names: BTreeMap<String, usize>,
    nodes: Vec<Node>,
}

impl Spec {
    fn new() -> Self {
        let mut spec = Self::default();
        spec.add(String::new(), FileKind::Dir, &[]);
        spec
    }

    fn add(&mut self, path: String, kind: FileKind, bytes: &[u8]) {
        self.names.insert(path, self.nodes.len());
        self.nodes.push(Node { kind, bytes: bytes.to_vec(), ino: None });
    }

    fn at(&self, path: &str) -> Option<usize> {
        self.names.get(path).copied()
    }

    fn is_dir(&self, path: &str) -> bool {
        self.at(path).is_some_and(|node| self.nodes[node].kind == FileKind::Dir)
    }

    /// The paths in a directory.
    fn inside<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = &'a String> {
        self.names.keys().filter(move |path| path.rsplit_once('/').is_some_and(|(up, _)| up == dir))
    }

    fn is_empty(&self, dir: &str) -> bool {
        self.inside(dir).next().is_none()
    }

    fn see(&self, path: &str) -> Option<Seen> {
        let at = self.at(path)?;
        let Node { kind, bytes, .. } = self.nodes[at].clone();
        let nlink = if kind == FileKind::Dir {
            2 + self.inside(path).filter(|path| self.is_dir(path)).count()
        } else {
            self.names.values().filter(|&&node| node == at).count()
        };
        Some(Seen { kind, nlink: nlink as u64, bytes })
    }

    /// Every reason against it: any one may be told.
    fn against(&self, op: &Op) -> Vec<i32> {
        let there = |name: &Name| self.at(&path(name)).is_some();
        let is_dir = |name: &Name| self.is_dir(&path(name));
        let mut reasons = Vec::new();
        let mut when = |holds: bool, errno: i32| reasons.extend(holds.then_some(errno));
        match op {
            Op::File(name, _) | Op::Dir(name) | Op::Symlink(name, _) => when(there(name), libc::EEXIST),
            Op::Link(from, to) => {
                when(!there(from), libc::ENOENT);
                when(is_dir(from), libc::EPERM);
                when(there(to), libc::EEXIST);
            }
            Op::Unlink(name) => {
                when(!there(name), libc::ENOENT);
                when(is_dir(name), libc::EISDIR);
            }
            Op::Rmdir(name) => {
                when(!there(name), libc::ENOENT);
                when(there(name) && !is_dir(name), libc::ENOTDIR);
                when(is_dir(name) && !self.is_empty(&path(name)), libc::ENOTEMPTY);
            }
            Op::Rename(from, to, mode) => {
                let same = there(from) && self.at(&path(from)) == self.at(&path(to));
                let within = |dir: &str, top: &str| format!("{dir}/").starts_with(&format!("{top}/"));
                when(!there(from), libc::ENOENT);
                when(is_dir(from) && within(&to.0, &path(from)), libc::EINVAL);
                when(*mode == RenameMode::NoReplace && there(to), libc::EEXIST);
                when(*mode == RenameMode::Exchange && !there(to), libc::ENOENT);
                if *mode == RenameMode::Exchange {
                    when(is_dir(to) && within(&from.0, &path(to)), libc::EINVAL);
                } else if there(to) && !same {
                    when(is_dir(from) && !is_dir(to), libc::ENOTDIR);
                    when(!is_dir(from) && is_dir(to), libc::EISDIR);
                    when(is_dir(to) && !self.is_empty(&path(to)), libc::ENOTEMPTY);
                }
            }
        }
        reasons
    }

    /// What nothing is against.
    fn change(&mut self, op: &Op) {
        match op {
            Op::File(name, bytes) => self.add(path(name), FileKind::File, bytes),
            Op::Dir(name) => self.add(path(name), FileKind::Dir, &[]),
            Op::Symlink(name, to) => self.add(path(name), FileKind::Symlink, to.as_bytes()),
            Op::Link(from, to) => {
                self.names.insert(path(to), self.names[&path(from)]);
            }
            Op::Unlink(name) | Op::Rmdir(name) => {
                self.names.remove(&path(name));
            }
            Op::Rename(from, to, mode) => {
                let (from, to) = (path(from), path(to));
                // Two names of one inode stay both.
                if self.at(&from) == self.at(&to) {
                    return;
                }
                let moved = self.take(&from);
                let other = self.take(&to);
                self.put(&to, moved);
                if *mode == RenameMode::Exchange {
                    self.put(&from, other);
                }
            }
        }
    }

    /// Everything at and below a path, which is no more; by what comes after it.
    fn take(&mut self, top: &str) -> Vec<(String, usize)> {
        let below = format!("{top}/");
        let all = self.names.extract_if(.., |path, _| path == top || path.starts_with(&below));
        all.map(|(path, node)| (path[top.len()..].to_owned(), node)).collect()
    }

    fn put(&mut self, top: &str, all: Vec<(String, usize)>) {
        self.names.extend(all.into_iter().map(|(rest, node)| (format!("{top}{rest}"), node)));
    }
}

fn choose(rng: &mut Rng, spec: &Spec) -> Op {
    let dirs: Vec<&String> = spec.names.keys().filter(|path| spec.is_dir(path)).collect();
    let mut name = || (dirs[rng.below(dirs.len())].clone(), NAMES[rng.below(NAMES.len())]);
    let (one, two) = (name(), name());
    // Trees stay so small that all of them can be looked at.
    let grows = spec.names.len() < 60;
    match rng.below(16) {
        0 | 1 if grows => {
            let len = rng.below(9000);
            Op::File(one, rng.bytes(len))
        }
        2..5 if grows => Op::Dir(one),
        5 if grows => Op::Symlink(one, format!("to/{}", two.1)),
        6 | 7 if grows => Op::Link(one, two),
        8 | 9 => Op::Unlink(one),
        10 => Op::Rmdir(one),
        11 | 12 => Op::Rename(one, two, RenameMode::Exchange),
        13 => Op::Rename(one, two, RenameMode::NoReplace),
        _ => Op::Rename(one, two, RenameMode::Replace),
    }
}

/// All names lead to the same inodes in both, which have the same numbers as before.
fn compare(target: &mut impl Target, spec: &mut Spec, what: &str) {
    let paths: Vec<(String, usize)> = spec.names.iter().map(|(path, &node)| (path.clone(), node)).collect();
    for (path, node) in &paths {
        let (seen, ino) = target.see(path).unwrap_or_else(|| panic!("{what}: {path} is gone"));
        assert_eq!(Some(seen), spec.see(path), "{what}: {path}");
        let known = *spec.nodes[*node].ino.get_or_insert(ino);
        assert_eq!(ino, known, "{what}: {path} is another inode");
        if spec.is_dir(path) {
            let mut listed = target.list(path);
            listed.sort();
            let inside = spec.inside(path).map(|path| path.rsplit('/').next().unwrap_or_default().to_owned());
            assert_eq!(
                listed.iter().map(|entry| entry.0.clone()).collect::<Vec<_>>(),
                inside.collect::<Vec<_>>()
            );
            for (name, ino) in listed {
                let node = spec.names[&format!("{path}/{name}")];
                assert_eq!(*spec.nodes[node].ino.get_or_insert(ino), ino, "{what}: listed {path}/{name}");
            }
        }
    }
    let mut numbers: Vec<_> =
        paths.iter().filter_map(|(_, node)| Some((spec.nodes[*node].ino?, node))).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert!(numbers.windows(2).all(|two| two[0].0 != two[1].0), "{what}: two inodes of one number");
}

fn run(target: &mut impl Target, rng: &mut Rng, steps: usize) {
    let mut spec = Spec::new();
    let mut met = BTreeMap::new();
    for step in 0..steps {
        let op = choose(rng, &spec);
        let what = format!("step {step}: {op:?}");
        let reasons = spec.against(&op);
        let done = target.change(&op);
        *met.entry(done.err()).or_insert(0) += 1;
        match done {
            Ok(()) => assert!(reasons.is_empty(), "{what}: done, though {reasons:?}"),
            Err(errno) => assert!(reasons.contains(&errno), "{what}: {errno}, not one of {reasons:?}"),
        }
        if done.is_ok() {
            spec.change(&op);
        }
        for name in NAMES {
            let path = format!("/{name}");
            assert_eq!(target.see(&path).map(|seen| seen.0), spec.see(&path), "{what}: {path}");
        }
        if step % 20 == 19 {
            compare(target, &mut spec, &what);
        }
        if rng.below(300) == 0 {
            target.restart();
        }
    }
    compare(target, &mut spec, "at the end");
    for errno in
        [libc::EEXIST, libc::ENOENT, libc::EPERM, libc::EISDIR, libc::ENOTDIR, libc::ENOTEMPTY, libc::EINVAL]
    {
        assert!(met.contains_key(&Some(errno)), "{errno} was never met: {met:?}");
    }
}

/// The filesystem without a mount.
struct Direct {
    fs: Fs<Model>,
}

impl Direct {
    fn ino(&self, path: &str) -> Result<Ino> {
        path.split('/').skip(1).try_fold(ROOT, |dir, name| Ok(self.fs.lookup((dir, name.as_bytes()))?.ino))
    }

    fn create(&self, (dir, name): &Name, kind: FileKind, target: &str) -> Result<Ino> {
        let at = (self.ino(dir)?, name.as_bytes());
        Ok(self.fs.create(at, kind, (0o755, 0, 0), root(), target.as_bytes())?.ino)
    }

    fn try_change(&self, op: &Op) -> Result<()> {
        match op {
            Op::File(name, bytes) => {
                let ino = self.create(name, FileKind::File, "")?;
                self.fs.write(ino, Some(0), bytes, false).map(drop)
            }
            Op::Dir(name) => self.create(name, FileKind::Dir, "").map(drop),
            Op::Symlink(name, to) => self.create(name, FileKind::Symlink, to).map(drop),
            Op::Link(from, to) => {
                let ino = self.ino(&path(from))?;
                self.fs.link(ino, (self.ino(&to.0)?, to.1.as_bytes()), root()).map(drop)
            }
            Op::Unlink((dir, name)) => self.fs.unlink((self.ino(dir)?, name.as_bytes())),
            Op::Rmdir((dir, name)) => self.fs.rmdir((self.ino(dir)?, name.as_bytes())),
            Op::Rename(from, to, mode) => {
                let name = |name: &Name| Ok((self.ino(&name.0)?, name.1));
                let ((from, a), (to, b)) = (name(from)?, name(to)?);
                self.fs.rename((from, a.as_bytes()), (to, b.as_bytes()), *mode, root())
            }
        }
    }
}

impl Target for Direct {
    fn change(&mut self, op: &Op) -> std::result::Result<(), i32> {
        self.try_change(op).map_err(|e| e.errno())
    }

    fn see(&mut self, path: &str) -> Option<(Seen, u64)> {
        let attr = self.ino(path).and_then(|ino| self.fs.attr(ino)).ok()?;
        let bytes = match attr.kind {
            FileKind::File => read(&self.fs, attr.ino, 0, 10_000).expect("read"),
            FileKind::Symlink => self.fs.readlink(attr.ino).expect("readlink"),
            _ => Vec::new(),
        };
        Some((Seen { kind: attr.kind, nlink: attr.nlink.into(), bytes }, attr.ino.0))
    }

    fn list(&mut self, dir: &str) -> Vec<(String, u64)> {
        let (ino, mut after, mut found) = (self.ino(dir).expect("directory"), 0, Vec::new());
        loop {
            let mut page = Vec::new();
            let add = |entry: &kos_types::Dirent| {
                if page.len() < PAGE {
                    page.push(entry.clone());
                }
                page.len() == PAGE
            };
            self.fs.list(ino, after, add).expect("list");
            let Some(last) = page.last() else { return found };
            after = last.cookie;
            let names = page.iter().map(|e| (String::from_utf8_lossy(&e.name).into_owned(), e.attr.ino.0));
            found.extend(names.filter(|(name, _)| name != "." && name != ".."));
        }
    }

    fn restart(&mut self) {
        self.fs.flush_all().expect("flush");
    }
}

#[test]
fn the_filesystems_names_equal_a_tree() {
    let mut rng = Rng::seeded(5);
    for _ in 0..4 {
        let (model, fs) = unmounted();
        let mut target = Direct { fs };
        run(&mut target, &mut rng, 2000);
        // From the leaves up.
        let mut spec = vec![(String::new(), ROOT.0)];
        let mut at = 0;
        while at < spec.len() {
            let dir = spec[at].0.clone();
            if target.see(&dir).is_some_and(|seen| seen.0.kind == FileKind::Dir) {
                spec.extend(target.list(&dir).into_iter().map(|(name, ino)| (format!("{dir}/{name}"), ino)));
            }
            at += 1;
        }
        for (path, _) in spec.iter().skip(1).rev() {
            let (dir, name) = path.rsplit_once('/').expect("below the top");
            let dir = target.ino(dir).expect("directory");
            let removed = target.fs.unlink((dir, name.as_bytes()));
            removed.or_else(|_| target.fs.rmdir((dir, name.as_bytes()))).expect("remove");
        }
        target.fs.files.reap();
        assert_eq!((model.stripes(), model.orphans()), (0, Vec::new()), "nothing is left");
    }
}

impl Target for Live {
    fn change(&mut self, op: &Op) -> std::result::Result<(), i32> {
        let at = |name: &Name| self.path(&path(name)[1..]);
        let rename = |from: &Path, to: &Path, mode| {
            let flags = match mode {
                RenameMode::Replace => RenameFlags::empty(),
                RenameMode::NoReplace => RenameFlags::NOREPLACE,
                RenameMode::Exchange => RenameFlags::EXCHANGE,
            };
            renameat_with(CWD, from, CWD, to, flags).map_err(Into::into)
        };
        let done = match op {
            Op::File(name, bytes) => fs::File::create_new(at(name)).map(|_| put(&at(name), bytes)),
            Op::Dir(name) => fs::create_dir(at(name)),
            Op::Symlink(name, to) => symlink(to, at(name)),
            Op::Link(from, to) => fs::hard_link(at(from), at(to)),
            Op::Unlink(name) => fs::remove_file(at(name)),
            Op::Rmdir(name) => fs::remove_dir(at(name)),
            Op::Rename(from, to, mode) => rename(&at(from), &at(to), *mode),
        };
        done.map_err(|e| e.raw_os_error().expect("an errno"))
    }

    fn see(&mut self, path: &str) -> Option<(Seen, u64)> {
        let path = self.path(path.trim_start_matches('/'));
        let meta = fs::symlink_metadata(&path).ok()?;
        let (kind, bytes) = match meta.file_type() {
            kind if kind.is_dir() => (FileKind::Dir, Vec::new()),
            kind if kind.is_symlink() => (
                FileKind::Symlink,
                fs::read_link(&path).expect("readlink").into_os_string().into_encoded_bytes(),
            ),
            _ => (FileKind::File, fs::read(&path).expect("read")),
        };
        Some((Seen { kind, nlink: meta.nlink(), bytes }, meta.ino()))
    }

    fn list(&mut self, dir: &str) -> Vec<(String, u64)> {
        use std::os::unix::fs::DirEntryExt;
        let entries = fs::read_dir(self.path(dir.trim_start_matches('/'))).expect("list");
        let entries = entries.map(|entry| entry.expect("entry"));
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.ino())).collect()
    }

    fn restart(&mut self) {
        self.remount();
    }
}

#[test]
fn a_mounts_names_equal_a_tree() {
    run(&mut Live::new(), &mut Rng::seeded(6), 2500);
}
