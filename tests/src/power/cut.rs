//! What a power cut leaves of a disk, from a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::content::{Change, Content};
use super::disk::{self, Disk, Inode, NameChange, ROOT};
use crate::Rng;

/// How a cut treats what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it is lost.
    Nothing,
    /// All of it was written back just before.
    Everything,
    /// A journal in order: the first changes of names survive, of each file the first writes, and
    /// the last of those is torn.
    Prefix,
    /// Written back in no order: of each file any pieces survive, of the names any changes that
    /// build on none that is lost.
    Pieces,
}

impl Cut {
    /// Mostly the two in between.
    #[must_use]
    pub fn choose(rng: &mut Rng) -> Self {
        match rng.below(6) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 | 3 => Self::Prefix,
            _ => Self::Pieces,
        }
    }
}

impl Disk {
    /// The disk as it is when the power is back.
    #[must_use]
    pub fn after(&self, cut: Cut, rng: &mut Rng) -> Self {
        let mut names = self.stable_names.clone();
        for change in surviving_names(&self.unsynced_names, cut, rng) {
            disk::settle(&mut names, change);
        }
        let mut after = Self { ignores_fsync: self.ignores_fsync, ..Self::new(self.capacity) };
        after.next = self.next;
        // What no name leads to any more is gone.
        let mut wanted = vec![ROOT];
        while let Some(dir) = wanted.pop() {
            for (name, &ino) in names.range((dir, Vec::new())..(dir + 1, Vec::new())) {
                let old = &self.inodes[&ino];
                let content = surviving_content(old, cut, rng);
                let new = after.inodes.entry(ino).or_insert_with(|| Inode::new(old.meta, content));
                new.links += 1;
                if old.meta.is_dir && new.links == 1 {
                    wanted.push(ino);
                }
                after.names.insert(name.clone(), ino);
            }
        }
        after.stable_names = BTreeMap::clone(&after.names);
        after
    }
}

fn surviving_names(unsynced: &VecDeque<NameChange>, cut: Cut, rng: &mut Rng) -> Vec<NameChange> {
    let upto = match cut {
        Cut::Nothing => 0,
        Cut::Everything | Cut::Pieces => unsynced.len(),
        Cut::Prefix => rng.below(unsynced.len() as u64 + 1) as usize,
    };
    let (mut names, mut inodes) = (BTreeSet::new(), BTreeSet::new());
    let mut survive = |change: &&NameChange| {
        if cut != Cut::Pieces {
            return true;
        }
        let lost = rng.below(2) == 0
            || change.set.iter().any(|(name, _)| names.contains(name))
            || change.inodes.iter().any(|ino| inodes.contains(ino));
        if lost {
            names.extend(change.set.iter().map(|(name, _)| name.clone()));
            inodes.extend(change.inodes.iter().copied());
        }
        !lost
    };
    unsynced.iter().take(upto).filter(|change| survive(change)).cloned().collect()
}

fn surviving_content(inode: &Inode, cut: Cut, rng: &mut Rng) -> Content {
    let mut content = inode.stable.clone();
    let changes = inode.unsynced.len() as u64;
    match cut {
        Cut::Nothing => {}
        Cut::Everything => inode.unsynced.iter().for_each(|change| content.apply(change)),
        Cut::Prefix => {
            let whole = rng.below(changes + 1) as usize;
            inode.unsynced.iter().take(whole).for_each(|change| content.apply(change));
            if let Some(torn) = inode.unsynced.get(whole) {
                apply_pieces(&mut content, torn, rng.below(101), rng);
            }
        }
        Cut::Pieces => {
            // Some files nearly whole, some nearly nothing.
            let percent = rng.below(101);
            inode.unsynced.iter().for_each(|change| apply_pieces(&mut content, change, percent, rng));
        }
    }
    content
}

/// Apply each piece of a change with a chance.
fn apply_pieces(content: &mut Content, change: &Change, percent: u64, rng: &mut Rng) {
    let mut kept = || rng.below(100) < percent;
    match change {
        Change::Write(at, data) => {
            // Sectors, or pages.
            let piece = if kept() { 512 } else { 4096 };
            let end = at + data.len() as u64;
            let mut from = *at;
            while from < end {
                let to = end.min((from / piece + 1) * piece);
                if kept() {
                    content.write(from, &data[(from - at) as usize..(to - at) as usize]);
                }
                from = to;
            }
            // The size may be stable before the bytes are.
            if kept() && content.size() < end {
                content.resize(end);
            }
        }
        Change::Size(_) | Change::Punch(_) => {
            if kept() {
                content.apply(change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::disk::Meta;
    use super::*;

    const FILE: Meta = Meta { is_dir: false, mode: 0o644, uid: 0, gid: 0, mtime: UNIX_EPOCH };
    const DIR: Meta = Meta { is_dir: true, ..FILE };
    const CUTS: [Cut; 4] = [Cut::Nothing, Cut::Everything, Cut::Prefix, Cut::Pieces];

    fn disk() -> Disk {
        Disk::new(1 << 30)
    }

    fn name(dir: u64, name: &str) -> (u64, Vec<u8>) {
        (dir, name.as_bytes().to_vec())
    }

    /// What each of many cuts leaves.
    fn cuts(disk: &Disk) -> Vec<(Cut, Disk)> {
        let mut rng = Rng::new(5);
        let mut cuts = Vec::new();
        for _ in 0..100 {
            cuts.extend(CUTS.map(|cut| (cut, disk.after(cut, &mut rng))));
        }
        cuts
    }

    fn content(disk: &Disk, path: &(u64, Vec<u8>)) -> Option<Vec<u8>> {
        let ino = disk.lookup(path).ok()?;
        Some(disk.read(ino, 0, usize::MAX).expect("a name has its inode"))
    }

    #[test]
    fn synced_bytes_under_synced_names_always_survive() {
        let (mut disk, path) = (disk(), name(ROOT, "file"));
        let ino = disk.create(path.clone(), FILE).expect("new");
        let old = vec![1; 10_000];
        disk.write(ino, 0, &old).expect("fits");
        disk.fsync(ino).expect("there");
        assert!(cuts(&disk).iter().any(|(_, after)| content(after, &path).is_none()), "no fsync of the name");
        disk.fsync_dir(ROOT);
        disk.write(ino, 10_000, &[2; 10_000]).expect("fits");
        for (cut, after) in cuts(&disk) {
            let found = content(&after, &path).expect("the name is stable");
            assert!(found.starts_with(&old), "{cut:?}");
            let rest = &found[10_000..];
            assert!(rest.len() <= 10_000 && rest.iter().all(|&b| b == 0 || b == 2), "{cut:?}");
            match cut {
                Cut::Nothing => assert_eq!(found, old),
                Cut::Everything => assert_eq!(rest, [2; 10_000]),
                Cut::Prefix | Cut::Pieces => {}
            }
        }
    }

    #[test]
    fn unsynced_writes_are_torn_and_reordered() {
        let (mut disk, path) = (disk(), name(ROOT, "file"));
        let ino = disk.create(path.clone(), FILE).expect("new");
        disk.write(ino, 0, &[1; 64 << 10]).expect("fits");
        disk.fsync(ino).expect("there");
        disk.fsync_dir(ROOT);
        for at in 0..8 {
            disk.write(ino, at * (8 << 10), &[2; 8 << 10]).expect("fits");
        }
        let found: Vec<_> =
            cuts(&disk).iter().map(|(cut, after)| (*cut, content(after, &path).expect("a name"))).collect();
        assert!(disk.inodes[&ino].now == disk.after(Cut::Everything, &mut Rng::new(1)).inodes[&ino].now);
        let is = |wanted: Cut, sign: fn(&[u8]) -> bool| {
            found.iter().any(|(cut, bytes)| *cut == wanted && sign(bytes))
        };
        let sectors = |bytes: &[u8]| bytes.chunks(512).map(|s| s[0]).collect::<Vec<u8>>();
        for (_, bytes) in &found {
            assert!(bytes.chunks(512).all(|s| s.iter().all(|&b| b == s[0])), "a sector is atomic");
        }
        assert!(is(Cut::Prefix, |b| b[0] == 2 && b[(64 << 10) - 1] == 1), "a prefix");
        assert!(is(Cut::Pieces, |b| b[0] == 1 && b[(64 << 10) - 1] == 2), "a later write without the first");
        let torn = |bytes: &[u8]| sectors(bytes).chunks(8).any(|page| page.iter().any(|&s| s != page[0]));
        assert!(found.iter().any(|(_, bytes)| torn(bytes)), "a torn page");
    }

    #[test]
    fn a_rename_is_all_or_nothing_and_waits_for_the_directory() {
        let (mut disk, old, new) = (disk(), name(ROOT, "old"), name(ROOT, "new"));
        for (path, byte) in [(&old, 1), (&new, 2)] {
            let ino = disk.create(path.clone(), FILE).expect("new");
            disk.write(ino, 0, &[byte]).expect("fits");
            disk.fsync(ino).expect("there");
        }
        disk.fsync_dir(ROOT);
        disk.rename(new.clone(), old.clone(), true).expect("renames");
        let mut seen = BTreeSet::new();
        for (_, after) in cuts(&disk) {
            seen.insert((content(&after, &old), content(&after, &new)));
        }
        let before = (Some(vec![1]), Some(vec![2]));
        let done = (Some(vec![2]), None);
        assert_eq!(seen, BTreeSet::from([before, done.clone()]));
        disk.fsync_dir(ROOT);
        for (_, after) in cuts(&disk) {
            assert_eq!((content(&after, &old), content(&after, &new)), done);
        }
    }

    #[test]
    fn changes_that_build_on_lost_ones_are_lost() {
        let mut disk = disk();
        let ino = disk.create(name(ROOT, "a"), FILE).expect("new");
        disk.rename(name(ROOT, "a"), name(ROOT, "b"), true).expect("renames");
        disk.rename(name(ROOT, "b"), name(ROOT, "c"), true).expect("renames");
        disk.create(name(ROOT, "a"), FILE).expect("new");
        for (cut, after) in cuts(&disk) {
            let at = ["a", "b", "c"].map(|n| after.lookup(&name(ROOT, n)).ok());
            assert!(at.iter().filter(|&&i| i == Some(ino)).count() <= 1, "{cut:?}: {at:?}");
        }
    }

    #[test]
    fn what_is_in_a_lost_directory_is_lost() {
        let mut disk = disk();
        let dir = disk.create(name(ROOT, "dir"), DIR).expect("new");
        let ino = disk.create(name(dir, "file"), FILE).expect("new");
        disk.fsync(ino).expect("there");
        disk.fsync_dir(dir);
        let lost = disk.after(Cut::Nothing, &mut Rng::new(1));
        assert_eq!((lost.names.len(), lost.inodes.len()), (0, 1));
        disk.fsync_dir(ROOT);
        let kept = disk.after(Cut::Nothing, &mut Rng::new(1));
        assert_eq!(kept.lookup(&name(dir, "file")), Ok(ino));
    }

    #[test]
    fn an_unlink_that_is_not_synced_may_be_undone() {
        let (mut disk, path) = (disk(), name(ROOT, "file"));
        let ino = disk.create(path.clone(), FILE).expect("new");
        disk.write(ino, 0, b"kept").expect("fits");
        disk.fsync(ino).expect("there");
        disk.fsync_dir(ROOT);
        disk.remove(path.clone(), false).expect("removes");
        assert_eq!(disk.bytes_used(), 0);
        let after = disk.after(Cut::Nothing, &mut Rng::new(1));
        assert_eq!(content(&after, &path), Some(b"kept".to_vec()));
        disk.fsync_dir(ROOT);
        assert_eq!(disk.inodes.len(), 1, "its bytes are given back");
    }

    #[test]
    fn memory_is_bounded_without_any_fsync() {
        let mut disk = Disk::new(8 << 20);
        for round in 0..200 {
            let path = name(ROOT, &format!("file{round}"));
            let ino = disk.create(path.clone(), FILE).expect("new");
            disk.write(ino, 0, &[1; 1 << 20]).expect("fits");
            disk.remove(path, false).expect("removes");
        }
        let bytes = |inode: &Inode| inode.now.bytes() + inode.stable.bytes();
        assert!(disk.inodes.values().map(bytes).sum::<u64>() < 300 << 20);
    }

    #[test]
    fn a_lying_disk_loses_what_it_acked() {
        let mut disk = Disk { ignores_fsync: true, ..Disk::new(1 << 20) };
        let ino = disk.create(name(ROOT, "file"), FILE).expect("new");
        disk.fsync(ino).expect("there");
        disk.fsync_dir(ROOT);
        assert_eq!(disk.after(Cut::Nothing, &mut Rng::new(1)).names.len(), 0);
    }

    #[test]
    fn the_same_seed_leaves_the_same() {
        let mut disk = disk();
        for file in 0..10 {
            let ino = disk.create(name(ROOT, &file.to_string()), FILE).expect("new");
            disk.write(ino, 0, &[file; 20_000]).expect("fits");
        }
        let once = |seed| format!("{:?}", disk.after(Cut::Pieces, &mut Rng::new(seed)));
        assert_eq!(once(3), once(3));
        assert!((4..9).any(|seed| once(seed) != once(3)));
    }
}
