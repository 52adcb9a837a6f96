//! Room set aside for what mounts have buffered, so that write(2) is refused and not the flush.
//! It is soft: a crash takes the buffers and their room together (ADR 5).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kos_core::quota::{self, Account};
use kos_core::{Tables, read};
use kos_types::{Error, Ino, Kind, Policy, Result};

use crate::policies::Policies;
use crate::tiers::{Tier, Tiers};

/// How old the figures of free space may be: a write would rather not ask every disk.
const FREE_AGE_MAX: Duration = Duration::from_millis(20);
/// Bytes of headers, checksums and rounding of one shard.
const SHARD_BYTES: u64 = 8 << 10;

/// What one file has in a buffer.
struct Room {
    bytes: u64,
    /// Of them, those that its file will grow by.
    grows: u64,
    /// Bytes set aside for them once they are coded.
    coded: u64,
    policy: Policy,
    /// The accounts with a limit that it will be charged to.
    accounts: Vec<Account>,
}

#[derive(Default)]
struct State {
    files: HashMap<Ino, Room>,
    /// Coded bytes for the disk tier, and for the memory tier or the disk behind it.
    disk: u64,
    memory: u64,
    /// The same for the memory tier alone.
    pinned: u64,
    accounts: BTreeMap<Account, u64>,
    /// Bytes free on disk and in memory, and when that was.
    free: Option<(Instant, u64, u64)>,
}

/// All room set aside.
#[derive(Default)]
pub(crate) struct Rooms {
    state: Mutex<State>,
}

/// Bytes that so many take once they are coded.
pub(crate) fn coded(policy: Policy, bytes: u64) -> u64 {
    let (n, k) = (policy.geometry.n() as u64, policy.geometry.k() as u64);
    if bytes == 0 { 0 } else { bytes.saturating_mul(n) / k + n * SHARD_BYTES }
}

impl Rooms {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Set `bytes` more aside for a file, which will grow by `grows` of them.
    pub(crate) fn reserve<T: Tables>(
        &self,
        tables: &T,
        tiers: &Tiers,
        policies: &Policies,
        ino: Ino,
        (bytes, grows): (u64, u64),
    ) -> Result<()> {
        let state = &mut *self.state();
        let room = match state.files.remove(&ino) {
            Some(room) => room,
            None => Room::new(tables, policies, ino)?,
        };
        let result = state.admit(tables, tiers, &room, (bytes, grows));
        let room = match result {
            Ok(()) => state.change(room, |room| {
                room.bytes += bytes;
                room.grows += grows;
            }),
            Err(_) => room,
        };
        if room.bytes > 0 {
            state.files.insert(ino, room);
        }
        tiers.keep(state.pinned);
        result
    }

    /// `bytes` of a file are in the fabric now, or nowhere any more.
    pub(crate) fn release(&self, tiers: &Tiers, ino: Ino, bytes: u64) {
        // Each write(2) gives back what it did not need, mostly nothing.
        if bytes == 0 {
            return;
        }
        let state = &mut *self.state();
        let Some(room) = state.files.remove(&ino) else { return };
        let (coded, tier) = (room.coded, Tier::from(room.policy));
        let room = state.change(room, |room| {
            room.bytes = room.bytes.saturating_sub(bytes);
            room.grows = room.grows.min(room.bytes);
        });
        state.took(tier, coded - room.coded);
        if room.bytes > 0 {
            state.files.insert(ino, room);
        }
        tiers.keep(state.pinned);
    }
}

impl Room {
    fn new<T: Tables>(tables: &T, policies: &Policies, ino: Ino) -> Result<Self> {
        let mut accounts = Vec::new();
        for account in quota::accounts(tables, &read::inode(tables, ino)?)? {
            let limited = quota::usage(tables, account)?.is_some_and(|usage| usage.is_limited());
            if limited && account != Account::User(0) {
                accounts.push(account);
            }
        }
        Ok(Self { bytes: 0, grows: 0, coded: 0, policy: policies.of(tables, ino)?, accounts })
    }
}

impl State {
    fn admit<T: Tables>(
        &mut self,
        tables: &T,
        tiers: &Tiers,
        room: &Room,
        (bytes, grows): (u64, u64),
    ) -> Result<()> {
        let needed = coded(room.policy, room.bytes + bytes) - room.coded;
        let tier = Tier::from(room.policy);
        if !self.fits(tiers, tier, needed, FREE_AGE_MAX)?
            && !self.fits(tiers, tier, needed, Duration::ZERO)?
        {
            if tier == Tier::Pinned {
                return Err(Error::new(Kind::NoSpace, "write: pinned, and the memory tier is full"));
            }
            return Err(Error::new(Kind::NoSpace, "write: the pool is full"));
        }
        for account in &room.accounts {
            let usage = quota::usage(tables, *account)?.unwrap_or_default();
            let set_aside = self.accounts.get(account).copied().unwrap_or(0);
            if grows > 0 && usage.bytes.saturating_add(set_aside).saturating_add(grows) > usage.bytes_max {
                return Err(Error::new(Kind::QuotaExceeded, format!("write: quota of {account:?}")));
            }
        }
        Ok(())
    }

    fn fits(&mut self, tiers: &Tiers, tier: Tier, needed: u64, age: Duration) -> Result<bool> {
        let (disk, memory) = match self.free {
            Some((when, disk, memory)) if when.elapsed() < age => (disk, memory),
            _ => {
                let disk = tiers.usage()?.bytes_free;
                let (used, total) = tiers.ram_usage()?;
                self.free = Some((Instant::now(), disk, total - used));
                (disk, total - used)
            }
        };
        let (wanted_disk, wanted_memory) = match tier {
            // What is pinned comes first: others are moved or go to disk for it.
            Tier::Pinned => return Ok(self.pinned + needed <= memory),
            Tier::Disk => (self.disk + needed, self.memory),
            Tier::Memory => (self.disk, self.memory + needed),
        };
        // What memory cannot take goes to disk.
        Ok(wanted_disk + (wanted_memory + self.pinned).saturating_sub(memory) <= disk)
    }

    /// So many bytes at most went to the stores, which is not in the last figures. Asking each disk again
    /// took longer than the rest of a small write.
    fn took(&mut self, tier: Tier, coded: u64) {
        let Some((_, disk, memory)) = &mut self.free else { return };
        let in_memory = if tier == Tier::Disk { 0 } else { coded.min(*memory) };
        *memory -= in_memory;
        *disk = disk.saturating_sub(coded - in_memory);
    }

    /// Change a file's room and the sums with it.
    fn change(&mut self, mut room: Room, change: impl FnOnce(&mut Room)) -> Room {
        let (coded_before, grows_before) = (room.coded, room.grows);
        change(&mut room);
        room.coded = coded(room.policy, room.bytes);
        let sum = match Tier::from(room.policy) {
            Tier::Disk => &mut self.disk,
            Tier::Memory => &mut self.memory,
            Tier::Pinned => &mut self.pinned,
        };
        *sum = *sum - coded_before + room.coded;
        for account in &room.accounts {
            let sum = self.accounts.entry(*account).or_default();
            *sum = *sum - grows_before + room.grows;
            if *sum == 0 {
                self.accounts.remove(account);
            }
        }
        room
    }
}
