//! The whole crate over the model fabric: without the kernel, and through real mounts.

mod caches;
mod interrupts;
mod killed;
mod live;
mod model;
mod names;
mod newer;
mod privileges;
mod random;
mod slow;
mod small;
mod tree;
mod unnamed;

use std::path::Path;
use std::sync::Arc;

use kos_types::{Cred, FileKind, Ino, ROOT, Result};

use crate::arena::Arena;
use crate::fs::Fs;
use crate::jobs::Caller;
use live::Live;
use model::Model;

/// Memory of its own.
fn arena() -> Arc<Arena> {
    Arena::new().expect("arena")
}

/// A filesystem without a mount.
fn unmounted() -> (Arc<Model>, Fs<Model>) {
    let model = Arc::<Model>::default();
    (Arc::clone(&model), Fs::new(model, Vec::new(), arena()))
}

/// A caller that may do everything.
fn root() -> Caller {
    Caller { cred: Cred { uid: 0, gid: 0 }, pid: std::process::id() }
}

fn create(fs: &Fs<Model>, name: &str) -> Ino {
    let who = root();
    let name = (ROOT, name.as_bytes());
    let ino = fs.create(name, FileKind::File, (0o644, 0, 0), who, b"").expect("create").ino;
    fs.told(ino);
    ino
}

/// What a read answers, into memory that holds something else.
fn read(fs: &Fs<Model>, ino: Ino, off: u64, len: usize) -> Result<Vec<u8>> {
    let mut out = vec![0xa5; len];
    let read = fs.read(ino, 0, off, &mut out)?;
    out.truncate(read);
    Ok(out)
}

/// Randomness from a seed, xorshift64*.
pub(crate) struct Rng(u64);

impl Rng {
    /// From `KOS_SEED`, or from the test's own number; printed, and shown when the test fails.
    pub(crate) fn seeded(own: u64) -> Self {
        let seed = std::env::var("KOS_SEED").map_or(own, |seed| seed.parse().expect("KOS_SEED: a number"));
        eprintln!("KOS_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Others from the same seed.
    fn split(&mut self) -> Self {
        Self(self.next() | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 11) % n as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// Write a file in one go.
fn put(path: &Path, data: &[u8]) {
    std::fs::write(path, data).expect("write");
}
