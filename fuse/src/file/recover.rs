//! What an earlier process of the mount had buffered when it was killed.

use std::sync::atomic::Ordering;

use kos_types::{Fabric, Kind};

use super::Files;

impl<F: Fabric> Files<F> {
    /// Buffer it again, before anything else is written. What was committed and not dropped yet is written once more.
    /// Answers the bytes.
    pub(crate) fn recover(&self) -> usize {
        let mut left = self.buffers.left();
        // In the order of the inodes, and of each the oldest first: the sort is stable.
        left.sort_by_key(|range| range.ino);
        let mut all = 0;
        while let Some(ino) = left.last().map(|range| range.ino) {
            let own = left.split_off(left.partition_point(|range| range.ino < ino));
            if self.fabric.attr(ino).is_err_and(|e| matches!(e.kind(), Kind::Stale | Kind::NotFound)) {
                continue;
            }
            let bytes = self.node(ino).recover(own);
            // It was set aside for the earlier process; whatever has taken it since, the bytes are answered for.
            if let Err(e) = self.fabric.reserve(ino, bytes as u64, bytes as u64) {
                kos_types::log!("kos-fuse: inode {}: {bytes} bytes were buffered: {e}", ino.0);
            }
            self.dirty.fetch_add(bytes, Ordering::Relaxed);
            self.leave(ino);
            all += bytes;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use kos_types::Ino;

    use crate::arena::{Arena, Buffers, Owner, kill};
    use crate::file::dirty::Dirty;
    use crate::tests::Rng;

    const BYTES: usize = 9000;

    /// What a mount has of a file.
    #[derive(Default)]
    struct Buffered {
        dirty: Dirty,
        flushing: Dirty,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize, Vec<u8>),
        Remove(usize, usize),
        Take,
        Commit,
        Fail,
    }

    impl Step {
        fn random(rng: &mut Rng) -> Self {
            let len_max = if rng.below(3) == 0 { 5000 } else { 300 };
            let (off, len) = (rng.below(BYTES), 1 + rng.below(len_max));
            let end = (off + len).min(BYTES);
            match rng.below(12) {
                // No byte is what a hole reads as.
                0..7 => Self::Write(off, rng.bytes(end - off).into_iter().map(|byte| byte | 1).collect()),
                7 => Self::Remove(off, BYTES),
                8 => Self::Remove(off, end),
                9 => Self::Take,
                10 => Self::Commit,
                _ => Self::Fail,
            }
        }

        /// What it changes.
        fn range(&self) -> std::ops::Range<usize> {
            match self {
                Self::Write(off, data) => *off..off + data.len(),
                Self::Remove(off, end) => *off..*end,
                Self::Take | Self::Commit | Self::Fail => 0..0,
            }
        }

        fn run(&self, file: &mut Buffered, owner: &Owner) {
            match self {
                Self::Write(off, data) => file.dirty.insert(owner, *off as u64, data).expect("room"),
                Self::Remove(off, end) => {
                    file.dirty.cut(*end as u64).expect("room");
                    file.dirty.remove(*off as u64, *end as u64);
                }
                Self::Take if file.flushing.is_empty() => file.flushing = std::mem::take(&mut file.dirty),
                Self::Take => (),
                Self::Commit => file.flushing = Dirty::default(),
                Self::Fail => {
                    let mut kept = std::mem::take(&mut file.flushing);
                    kept.merge(std::mem::take(&mut file.dirty));
                    file.dirty = kept;
                }
            }
        }
    }

    fn owner(memory: &OwnedFd) -> Owner {
        let arena = Arena::adopt(memory.try_clone().expect("clone")).expect("adopt");
        Owner { buffers: Buffers::new(arena), ino: Ino(7) }
    }

    fn recover(owner: &Owner) -> Buffered {
        let mut file = Buffered::default();
        owner.buffers.left().into_iter().for_each(|left| file.dirty.lay(left.off, left.buf));
        file
    }

    fn seen(committed: &[u8], file: &Buffered) -> Vec<u8> {
        let mut seen = committed.to_vec();
        file.flushing.overlay(0, &mut seen);
        file.dirty.overlay(0, &mut seen);
        seen
    }

    #[test]
    fn whenever_it_is_killed_every_byte_is_as_it_was_told() {
        let mut rng = Rng::seeded(1);
        let (mut cut_off, mut cut_off_again) = (0, 0);
        for _ in 0..150 {
            let memory = Arena::new().expect("arena").memory().try_clone_to_owned().expect("clone");
            let (mut owner_now, mut file, mut committed) =
                (owner(&memory), Buffered::default(), vec![0; BYTES]);
            let mut expected = committed.clone();
            for nth in 0..300 {
                let step = Step::random(&mut rng);
                // The fabric comes first.
                match &step {
                    Step::Commit => file.flushing.overlay(0, &mut committed),
                    // What a flush under way writes is not removed: a change waits for it.
                    Step::Remove(..) if !file.flushing.is_empty() => continue,
                    Step::Remove(off, end) => committed[*off..*end].fill(0),
                    _ => (),
                }
                let before = expected.clone();
                match &step {
                    Step::Write(off, data) => expected[*off..off + data.len()].copy_from_slice(data),
                    Step::Remove(off, end) => expected[*off..*end].fill(0),
                    _ => (),
                }
                if rng.below(8) > 0 {
                    step.run(&mut file, &owner_now);
                    assert!(seen(&committed, &file) == expected, "step {nth}: {step:?}");
                    continue;
                }
                let mut ended = None;
                let changes = rng.below(24);
                let done = kill::after(changes, || {
                    let (mut file, owner) = (file, owner_now);
                    step.run(&mut file, &owner);
                    ended = Some((file, owner));
                });
                if let Some((same_file, same_owner)) = ended {
                    assert!(done);
                    (file, owner_now) = (same_file, same_owner);
                    continue;
                }
                cut_off += 1;
                // Who takes it over may be killed too.
                while !recover_and_die(&memory, rng.below(40)) {
                    cut_off_again += 1;
                }
                owner_now = owner(&memory);
                file = recover(&owner_now);
                let found = seen(&committed, &file);
                for (at, (&found, (&old, &new))) in found.iter().zip(before.iter().zip(&expected)).enumerate()
                {
                    let may = found == new || step.range().contains(&at) && found == old;
                    assert!(may, "step {nth}: {step:?} after {changes}: {found} at {at}, not {old} or {new}");
                }
                expected = found;
            }
            drop(file);
            assert_eq!(owner_now.buffers.taken(), 0);
        }
        assert!(cut_off > 1000 && cut_off_again > 100, "{cut_off} {cut_off_again}");
    }

    /// Recover, and die at the end at the latest: whether it came there.
    fn recover_and_die(memory: &OwnedFd, changes: usize) -> bool {
        let mut ended = false;
        kill::after(changes, || {
            let file = recover(&owner(memory));
            ended = true;
            kill::now();
            drop(file);
        });
        ended
    }
}
