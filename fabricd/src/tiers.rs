//! The tiers a node keeps shards in: disk, and named memory with a hard budget.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kos_store::{Location, Medium, PlaceStatus, Store, Usage};
use kos_types::{Class, Error, Kind, Pin, Policy, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::standing::Live;
use crate::status::Counters;

/// Kept free for metadata, so that a full pool can still delete and commit.
const RESERVE_BYTES: u64 = 64 << 20;
/// Directories of the memory tier: one for each shard of the default geometry, as on disk.
const RAM_PLACES: usize = 6;
/// Bit of an encoded place that means the memory tier; a store has at most 32 places.
const RAM_BIT: u8 = 0x80;
/// Places that one append waits for in vain before it is given up: when two hang, it is rather what they share.
const SILENT_MAX: u32 = 2;
/// What mount(8) shows as the source of the memory tier; `kos down --wipe` goes by it.
const RAM_SOURCE: &str = "kosfs-ram";

/// Where a new shard goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Disk,
    /// To memory, and to disk when there is no room.
    Memory,
    /// To memory or nowhere.
    Pinned,
}

impl From<Policy> for Tier {
    fn from(policy: Policy) -> Self {
        match (policy.class, policy.pin) {
            (Class::Disk, _) => Self::Disk,
            (Class::Memory | Class::Scratch, Pin::None) => Self::Memory,
            (Class::Memory | Class::Scratch, Pin::Ram) => Self::Pinned,
        }
    }
}

/// Where a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) ram: bool,
    pub(crate) place: usize,
    pub(crate) location: Location,
}

impl Spot {
    /// The place, told apart from those of the other tier.
    pub(crate) const fn at(&self) -> (bool, usize) {
        (self.ram, self.place)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // A store has at most 32 places.
        let mut value = vec![self.place as u8 | if self.ram { RAM_BIT } else { 0 }];
        value.extend_from_slice(&self.location.to_bytes());
        value
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self> {
        let (place, location) =
            value.split_first().ok_or_else(|| Error::new(Kind::Io, "shard record: too short"))?;
        Ok(Self {
            ram: place & RAM_BIT != 0,
            place: usize::from(place & !RAM_BIT),
            location: Location::from_bytes(location)?,
        })
    }
}

/// The filesystem in memory that holds the memory tier. It stays when the process is killed, and
/// goes at a clean end, when its shards have moved to disk.
#[derive(Debug)]
pub(crate) struct RamDir {
    dir: PathBuf,
    /// It was not there before: whatever the index says is in it is gone.
    pub(crate) fresh: bool,
}

impl RamDir {
    /// Mount it, or find it mounted; none without a budget and without an old one.
    pub(crate) fn attach(dir: &Path, budget: u64) -> Result<Option<Self>> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("memory tier", &e))?;
        let mounted = is_mounted(dir)?;
        if budget == 0 && !mounted {
            return Ok(None);
        }
        if !mounted && !rustix::process::geteuid().is_root() {
            kos_types::log!(
                "fabricd: there is no memory tier, which only root can mount: all is kept on disk"
            );
            return Ok(None);
        }
        if !mounted {
            // Pages as large as an append fills: they are not cleared first, and go whole when a shard is
            // freed. With `huge=always` an append clears what it does not fill (docs/PERFORMANCE.md).
            let options = format!("size={budget},mode=700");
            if let Err(e) = attach(dir, &format!("{options},huge=within_size")) {
                kos_types::log!("fabricd: {e}; the memory tier has pages of 4 KiB");
                attach(dir, &options)?;
            }
        }
        Ok(Some(Self { dir: dir.to_path_buf(), fresh: !mounted }))
    }

    fn places(&self) -> Vec<PathBuf> {
        (0..RAM_PLACES).map(|i| self.dir.join(i.to_string())).collect()
    }

    /// Where copies of sealed files are.
    fn copies(&self) -> PathBuf {
        self.dir.join("copies")
    }

    fn detach(&self) -> Result<()> {
        let unmounted = match unmount(&self.dir, UnmountFlags::empty()) {
            // Programs still read copies in place: their memory goes when they let go of it.
            Err(rustix::io::Errno::BUSY) => unmount(&self.dir, UnmountFlags::DETACH),
            other => other,
        };
        unmounted.map_err(|e| Error::io("memory tier: unmount", &e.into()))
    }
}

fn attach(dir: &Path, options: &str) -> Result<()> {
    let data =
        std::ffi::CString::new(options).map_err(|_| Error::new(Kind::Invalid, "memory tier: options"))?;
    mount(RAM_SOURCE, dir, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC, Some(&*data))
        .map_err(|e| Error::io("memory tier: mount", &e.into()))
}

/// Whether a filesystem of its own is at `dir`.
fn is_mounted(dir: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let dev =
        |path: &Path| std::fs::metadata(path).map(|m| m.dev()).map_err(|e| Error::io("memory tier", &e));
    Ok(dev(dir)? != dev(&dir.join(".."))?)
}

/// One directory of the disk tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceUsage {
    /// Its path.
    pub dir: PathBuf,
    /// Why it takes no shards.
    pub failed: Option<Error>,
    /// Bytes of the shards in it.
    pub bytes_shards: u64,
}

/// The stores of one node.
pub(crate) struct Tiers {
    disk: Store,
    disk_places: usize,
    ram: Option<(RamDir, Store)>,
    /// Bytes of memory set aside for what is pinned.
    kept: AtomicU64,
    counters: Arc<Counters>,
}

impl Tiers {
    /// Open both; `live` is everything the index knows.
    pub(crate) fn open(
        disk: &[PathBuf],
        ram: Option<RamDir>,
        live: &[Spot],
        counters: Arc<Counters>,
    ) -> Result<Self> {
        let of = |ram| live.iter().filter(move |s| s.ram == ram).map(|s| (s.place, s.location));
        let ram = match ram {
            Some(dir) => {
                let store = Store::open(&dir.places(), of(true), Medium::Memory)?;
                Some((dir, store))
            }
            None => None,
        };
        let kept = AtomicU64::new(0);
        let disk_places = disk.len();
        let disk = Store::open(disk, of(false), Medium::Disk)?;
        Ok(Self { disk, disk_places, ram, kept, counters })
    }

    /// Where copies of sealed files are.
    pub(crate) fn copies(&self) -> Option<PathBuf> {
        self.ram.as_ref().map(|(dir, _)| dir.copies())
    }

    fn store(&self, spot: &Spot) -> Result<&Store> {
        match (spot.ram, &self.ram) {
            (false, _) => Ok(&self.disk),
            (true, Some((_, store))) => Ok(store),
            (true, None) => Err(Error::new(Kind::Io, "memory tier: gone")),
        }
    }

    /// Write one shard of a stripe whose other shards are at `beside`; to the place that has the fewest of them, beginning with number `first`.
    pub(crate) fn append(&self, tier: Tier, first: usize, beside: &[Spot], parts: &[&[u8]]) -> Result<Spot> {
        self.append_where(tier, first, beside, parts, |_| true)
    }

    /// The same, but only to places that `allowed` says.
    pub(crate) fn append_where(
        &self,
        tier: Tier,
        first: usize,
        beside: &[Spot],
        parts: &[&[u8]],
        allowed: impl Fn((bool, usize)) -> bool,
    ) -> Result<Spot> {
        let order = |ram| {
            let mut places = self.working(ram);
            places.retain(|&place| allowed((ram, place)));
            let first = first.checked_rem(places.len()).unwrap_or(0);
            places.rotate_left(first);
            places.sort_by_key(|&place| beside.iter().filter(|spot| spot.at() == (ram, place)).count());
            places
        };
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if let (true, Some((_, store))) = (self.may_use_memory(tier, len as u64)?, &self.ram) {
            match append(store, &order(true), parts) {
                Ok((place, location)) => return Ok(Spot { ram: true, place, location }),
                // The budget is used up, or no place of it is allowed.
                Err(e) if e.kind() == Kind::NoSpace => (),
                Err(e) => return Err(e),
            }
        }
        if tier == Tier::Pinned {
            return Err(Error::new(Kind::NoSpace, "write: pinned, and the memory tier is full"));
        }
        if self.disk.usage()?.bytes_free < RESERVE_BYTES + len as u64 {
            return Err(Error::new(Kind::NoSpace, "write: the state directories are full"));
        }
        let places = order(false);
        if places.is_empty() {
            return Err(Error::new(Kind::Io, "write: no state directory takes it; see the log"));
        }
        let (place, location) = append(&self.disk, &places, parts)?;
        Ok(Spot { ram: false, place, location })
    }

    /// Whether a shard may go to memory: what is not pinned leaves alone what is set aside.
    fn may_use_memory(&self, tier: Tier, len: u64) -> Result<bool> {
        let kept = self.kept.load(Ordering::Relaxed);
        Ok(match tier {
            Tier::Disk => false,
            Tier::Memory if kept > 0 => self.ram_free()? >= kept.saturating_add(len),
            Tier::Memory | Tier::Pinned => true,
        })
    }

    /// Set so many bytes of memory aside for what is pinned.
    pub(crate) fn keep(&self, bytes: u64) {
        self.kept.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of memory set aside for what is pinned.
    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Places of a tier that take shards.
    fn working(&self, ram: bool) -> Vec<usize> {
        match (ram, &self.ram) {
            (false, _) => (0..self.disk_places).filter(|&place| self.disk.works(place)).collect(),
            (true, Some((_, store))) => (0..RAM_PLACES).filter(|&place| store.works(place)).collect(),
            (true, None) => Vec::new(),
        }
    }

    /// How many places of each tier take shards.
    pub(crate) fn live(&self) -> Live {
        Live { disk: self.working(false).len(), ram: self.working(true).len() }
    }

    /// Whether the bytes of a shard are there, as far as can be told without reading them.
    pub(crate) fn holds(&self, spot: &Spot) -> bool {
        self.store(spot).is_ok_and(|store| store.holds(spot.place, spot.location))
    }

    pub(crate) fn read(&self, spot: &Spot, at: u64, out: &mut [u8]) -> Result<()> {
        let counter = if spot.ram { &self.counters.bytes_read_ram } else { &self.counters.bytes_read_disk };
        counter.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.store(spot)?.read(spot.place, spot.location, at, out)
    }

    pub(crate) fn free(&self, spot: &Spot) -> Result<()> {
        self.store(spot)?.free(spot.place, spot.location)
    }

    /// Everything appended to these places of the disk tier is on stable storage; an answer for each.
    pub(crate) fn sync(&self, places: &BTreeSet<usize>) -> Vec<(usize, Result<()>)> {
        self.disk.sync_all(places.iter().copied())
    }

    /// Space on disk, without what is kept for metadata.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let usage = self.disk.usage()?;
        Ok(Usage { bytes_free: usage.bytes_free.saturating_sub(RESERVE_BYTES), ..usage })
    }

    /// Bytes used and bytes there are of the memory tier.
    pub(crate) fn ram_usage(&self) -> Result<(u64, u64)> {
        let Some((_, store)) = &self.ram else { return Ok((0, 0)) };
        let usage = store.usage()?;
        Ok((usage.bytes_total - usage.bytes_free, usage.bytes_total))
    }

    /// Bytes free in the memory tier.
    pub(crate) fn ram_free(&self) -> Result<u64> {
        self.ram_usage().map(|(used, total)| total - used)
    }

    /// What each directory of the disk tier holds.
    pub(crate) fn places(&self) -> Vec<PlaceUsage> {
        let live = |place| self.disk.segments(place).map_or(0, |all| all.iter().map(|s| s.bytes_live).sum());
        let usage = |(place, status): (usize, PlaceStatus)| PlaceUsage {
            dir: status.dir,
            failed: status.failed,
            bytes_shards: live(place),
        };
        self.disk.places().into_iter().enumerate().map(usage).collect()
    }

    /// How each directory of the disk tier is.
    pub(crate) fn statuses(&self) -> Vec<PlaceStatus> {
        self.disk.places()
    }

    /// Why places take no more writes, of each that does not.
    pub(crate) fn failed(&self) -> Vec<Error> {
        self.statuses().into_iter().filter_map(|place| place.failed).collect()
    }

    /// Close the stores and give the memory back: its shards have moved.
    pub(crate) fn close_ram(&mut self) -> Result<()> {
        match self.ram.take() {
            Some((dir, store)) => {
                drop(store);
                dir.detach()
            }
            None => Ok(()),
        }
    }
}

fn append(store: &Store, places: &[usize], parts: &[&[u8]]) -> Result<(usize, Location)> {
    let mut last = Error::new(Kind::NoSpace, "append: no place takes it");
    let mut silent = 0;
    for &place in places {
        match store.append(place, parts) {
            Ok(location) => return Ok((place, location)),
            Err(e) => last = e,
        }
        silent += u32::from(last.kind() == Kind::TimedOut);
        if silent >= SILENT_MAX {
            break;
        }
    }
    Err(last)
}
