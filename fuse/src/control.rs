//! The control tree: the mount's root, and files whose contents are made when they are opened.

use std::fmt;

use kos_types::{Attr, Error, FileKind, Ino, JOBS, Kind, ROOT, Result, Time};
use rustix::process::{getegid, geteuid};

/// The mount's root directory, FUSE's own root.
pub(crate) const TOP: Ino = Ino(1);
/// Inodes of the other entries: a metadata group that no fabric has.
pub(crate) const BASE: u64 = 0x3ff << 54;
/// The directory of snapshots.
pub(crate) const SNAP: Ino = Ino(BASE + 1);
/// Positions in listings, above those of `.` and `..`.
const COOKIE_BASE: u64 = 16;

/// A file of the control tree.
pub struct ControlFile {
    /// Its path below the mount, without a leading slash; directories on the way are made.
    pub path: String,
    /// Its contents now.
    pub read: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// It grows while it is open; else an open file keeps what it held when it was opened.
    pub live: bool,
    /// What a write by the mount's owner does; without, nobody writes.
    pub write: Option<WriteControl>,
}

/// Takes the bytes of one write(2), and a function that makes everything written to the mount
/// stable.
pub type WriteControl = Box<dyn Fn(&[u8], &dyn Fn() -> Result<()>) -> Result<()> + Send + Sync>;

impl fmt::Debug for ControlFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlFile").field("path", &self.path).finish_non_exhaustive()
    }
}

enum Node {
    Dir(Vec<(String, Ino)>),
    File(ControlFile),
}

/// The whole tree; entry 0 is the root.
pub(crate) struct Tree {
    nodes: Vec<(Ino, Node)>,
    mounted: Time,
    /// Whose the mount is: root's, or the user's who made it.
    owner: (u32, u32),
}

impl Tree {
    /// `mem`, `jobs`, `snap` and the directories and files of `files`.
    pub(crate) fn new(files: Vec<ControlFile>, mounted: Time, has_jobs: bool) -> Self {
        let jobs = has_jobs.then(|| ("jobs".to_owned(), JOBS));
        let root = Node::Dir([("mem".to_owned(), ROOT)].into_iter().chain(jobs).collect());
        let owner = (geteuid().as_raw(), getegid().as_raw());
        let mut tree = Self { nodes: vec![(TOP, root)], mounted, owner };
        // The first to be added, so it has the number of `SNAP`; its entries are the fabric's.
        tree.add(0, "snap", Node::Dir(Vec::new()));
        for file in files {
            let mut dir = 0;
            let path = file.path.clone();
            let (dirs, name) = path.rsplit_once('/').unwrap_or(("", &path));
            for part in dirs.split('/').filter(|part| !part.is_empty()) {
                dir = tree.child(dir, part).unwrap_or_else(|| tree.add(dir, part, Node::Dir(Vec::new())));
            }
            tree.add(dir, name, Node::File(file));
        }
        tree
    }

    fn child(&self, dir: usize, name: &str) -> Option<usize> {
        let Node::Dir(entries) = &self.nodes[dir].1 else { return None };
        entries.iter().find(|(entry, _)| entry == name).and_then(|&(_, ino)| index(ino))
    }

    fn add(&mut self, dir: usize, name: &str, node: Node) -> usize {
        let number = self.nodes.len();
        let ino = Ino(BASE + number as u64);
        if let Node::Dir(entries) = &mut self.nodes[dir].1 {
            entries.push((name.to_owned(), ino));
        }
        self.nodes.push((self.nodes[dir].0, node));
        number
    }

    fn node(&self, ino: Ino) -> Result<&(Ino, Node)> {
        index(ino).and_then(|i| self.nodes.get(i)).ok_or_else(|| Error::new(Kind::Stale, "control entry"))
    }

    fn entries(&self, dir: Ino) -> Result<&[(String, Ino)]> {
        match &self.node(dir)?.1 {
            Node::Dir(entries) => Ok(entries),
            Node::File(_) => Err(Error::new(Kind::NotDir, "control file")),
        }
    }

    /// What a name in a directory stands for.
    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let found = self.entries(dir)?.iter().find(|(entry, _)| entry.as_bytes() == name);
        found.map(|&(_, ino)| ino).ok_or_else(|| Error::new(Kind::NotFound, "lookup"))
    }

    /// The directory that holds a directory; the root holds itself.
    pub(crate) fn parent(&self, dir: Ino) -> Result<Ino> {
        Ok(self.node(dir)?.0)
    }

    /// Entries behind a position, with their positions.
    pub(crate) fn list(&self, dir: Ino, after: u64) -> Result<impl Iterator<Item = (u64, &str, Ino)>> {
        let entries = (COOKIE_BASE..).zip(self.entries(dir)?);
        Ok(entries.filter(move |(at, _)| *at > after).map(|(at, (name, ino))| (at, name.as_str(), *ino)))
    }

    pub(crate) fn file(&self, ino: Ino) -> Result<&ControlFile> {
        match &self.node(ino)?.1 {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(Error::new(Kind::IsDir, "control directory")),
        }
    }

    /// Contents of a file.
    pub(crate) fn read(&self, ino: Ino) -> Result<Vec<u8>> {
        self.file(ino).map(|file| (file.read)())
    }

    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr> {
        let (kind, mode, nlink, size) = match &self.node(ino)?.1 {
            Node::Dir(entries) => (FileKind::Dir, 0o755, 2 + entries.len() as u32, 0),
            Node::File(file) => {
                let mode = if file.write.is_some() { 0o600 } else { 0o444 };
                (FileKind::File, mode, 1, (file.read)().len() as u64)
            }
        };
        let time = self.mounted;
        Ok(Attr {
            ino,
            kind,
            mode,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            size,
            bytes: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            sealed: false,
        })
    }
}

/// Whether an inode belongs to the control tree and not to the fabric.
pub(crate) fn owns(ino: Ino) -> bool {
    ino == TOP || ino.0 >= BASE
}

fn index(ino: Ino) -> Option<usize> {
    if ino == TOP { Some(0) } else { ino.0.checked_sub(BASE).and_then(|i| usize::try_from(i).ok()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_directories_and_files() {
        let file = |path: &str| ControlFile {
            path: path.into(),
            read: Box::new(|| b"text\n".to_vec()),
            live: false,
            write: None,
        };
        let tree = Tree::new(
            vec![file("sys/health"), file("sys/metrics"), file("nodes/a/status")],
            Time::default(),
            true,
        );
        let names =
            |dir| tree.list(dir, 0).expect("lists").map(|(_, name, _)| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(TOP), ["mem", "jobs", "snap", "sys", "nodes"]);
        let sys = tree.lookup(TOP, b"sys").expect("sys");
        assert_eq!(names(sys), ["health", "metrics"]);
        let metrics = tree.lookup(sys, b"metrics").expect("metrics");
        assert_eq!(tree.read(metrics).expect("reads"), b"text\n");
        assert_eq!((tree.parent(sys).ok(), tree.attr(metrics).map(|a| a.size).ok()), (Some(TOP), Some(5)));
        assert!(
            tree.lookup(TOP, b"none").is_err() && tree.read(sys).is_err() && tree.list(metrics, 0).is_err()
        );
        assert_eq!(tree.list(sys, 16).expect("lists").count(), 1, "behind the first");
        assert_eq!(tree.lookup(TOP, b"snap").ok(), Some(SNAP));
        assert!(owns(sys) && owns(TOP) && !owns(ROOT));
    }
}
