//! The store: all places of a node behind one handle.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use kos_types::{Error, Kind, Result};
use rustix::fs::fstatvfs;

use crate::Location;
use crate::limits::{PLACES_MAX, READ_FDS_MAX, SEGMENT_BYTES};
use crate::log::{Log, SegmentUsage};
use crate::place::Place;

/// Shards at rest. Every method may be called from many threads at once.
#[derive(Debug)]
pub struct Store {
    places: Vec<Place>,
}

/// Space on the disks of all places that work, each disk counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Size of the filesystems.
    pub bytes_total: u64,
    /// What can still be appended.
    pub bytes_free: u64,
}

/// How one place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceStatus {
    /// Its directory.
    pub dir: PathBuf,
    /// Why it takes no appends: it could not be opened, or a sync has failed.
    pub failed: Option<Error>,
}

impl Store {
    /// Open the places in `dirs`; a place's number is its position there, for ever. `live` is
    /// everything the caller's index knows: what it does not name is deleted. A shard that it names
    /// and that is gone is found when it is read.
    ///
    /// A place whose directory does not work is failed: it reads and appends nothing.
    ///
    /// # Errors
    /// `Invalid` for 0 or more than 32 directories, for a live place that is none of them and for a
    /// directory that was another place before; `Busy` when another store has one of them.
    pub fn open(dirs: &[PathBuf], live: impl IntoIterator<Item = (usize, Location)>) -> Result<Self> {
        Self::open_sized(dirs, live, SEGMENT_BYTES)
    }

    /// [`Self::open`] with segments of another size.
    pub(crate) fn open_sized(
        dirs: &[PathBuf],
        live: impl IntoIterator<Item = (usize, Location)>,
        segment_bytes: u64,
    ) -> Result<Self> {
        if dirs.is_empty() || dirs.len() > PLACES_MAX {
            return Err(Error::new(Kind::Invalid, format!("{} places, not 1 to {PLACES_MAX}", dirs.len())));
        }
        let mut claims = vec![BTreeMap::<u64, Vec<(u64, u64)>>::new(); dirs.len()];
        for (place, location) in live {
            let Some(claim) = claims.get_mut(place) else {
                let why = "is claimed but not listed: keep the directories as they were";
                return Err(Error::new(Kind::Invalid, format!("place {place} {why}")));
            };
            claim.entry(location.segment).or_default().push((location.offset, location.len));
        }
        let fds_max = READ_FDS_MAX / dirs.len();
        let mut places = Vec::with_capacity(dirs.len());
        for (number, (dir, live)) in dirs.iter().zip(claims).enumerate() {
            places.push(Place::open(dir, number, live, segment_bytes, fds_max)?);
        }
        Ok(Self { places })
    }

    /// Write `parts`, together whole blocks of 4 KiB, one after the other. Stable after
    /// [`Self::sync`].
    ///
    /// # Errors
    /// `Invalid` for a length that is not; `NoSpace`; `Io` also from a place that has failed.
    pub fn append(&self, place: usize, parts: &[&[u8]]) -> Result<Location> {
        self.log(place)?.append(parts)
    }

    /// Return when everything appended to `place` so far is stable. Callers share one fdatasync.
    ///
    /// # Errors
    /// `Io`, and then for every later append and sync there: what a failed fsync has lost, a
    /// second one does not tell.
    pub fn sync(&self, place: usize) -> Result<()> {
        self.log(place)?.sync()
    }

    /// Fill `out` from byte `at` of a location on.
    ///
    /// # Errors
    /// `Invalid` beyond the location's end; `NotFound` or `Io` when the bytes are lost.
    pub fn read(&self, place: usize, location: Location, at: u64, out: &mut [u8]) -> Result<()> {
        self.log(place)?.read(location, at, out)
    }

    /// Give a location's blocks back. Nobody may read it any more: its bytes become zeros at once.
    /// On a failed place nothing happens, and the next open that works deletes what is unclaimed.
    ///
    /// # Errors
    /// `Invalid` for more bytes than are live; `Io`, and then it is still live.
    pub fn free(&self, place: usize, location: Location) -> Result<()> {
        match &self.place(place)?.log {
            Ok(log) => log.free(location),
            Err(_) => Ok(()),
        }
    }

    /// Whether a sync of `place` has failed.
    #[must_use]
    pub fn poisoned(&self, place: usize) -> bool {
        self.log(place).is_ok_and(|log| log.check().is_err())
    }

    /// Whether `place` takes appends.
    #[must_use]
    pub fn works(&self, place: usize) -> bool {
        self.log(place).is_ok_and(|log| log.check().is_ok())
    }

    /// Whether the file of a live location is there and long enough; what its bytes are, only
    /// reading them tells.
    #[must_use]
    pub fn holds(&self, place: usize, location: Location) -> bool {
        self.log(place).is_ok_and(|log| log.holds(location))
    }

    /// How each place is, in their order.
    #[must_use]
    pub fn places(&self) -> Vec<PlaceStatus> {
        let failed =
            |place: &Place| place.log.as_ref().map_or_else(|e| Some(e.clone()), |log| log.check().err());
        self.places
            .iter()
            .map(|place| PlaceStatus { dir: place.dir.clone(), failed: failed(place) })
            .collect()
    }

    /// The segments of a place, oldest first.
    ///
    /// # Errors
    /// `Io` from a place that could not be opened.
    pub fn segments(&self, place: usize) -> Result<Vec<SegmentUsage>> {
        Ok(self.log(place)?.segments())
    }

    /// Space on all disks. A poisoned place's disk has none free unless another place is on it.
    ///
    /// # Errors
    /// `Io` when no place can be asked.
    pub fn usage(&self) -> Result<Usage> {
        let mut disks = BTreeMap::<u64, Usage>::new();
        for log in self.places.iter().filter_map(|place| place.log.as_ref().ok()) {
            let (Ok(meta), Ok(vfs)) = (log.dir_file().metadata(), fstatvfs(log.dir_file())) else { continue };
            let disk = disks.entry(meta.dev()).or_default();
            disk.bytes_total = vfs.f_blocks.saturating_mul(vfs.f_frsize);
            if log.check().is_ok() {
                disk.bytes_free = vfs.f_bavail.saturating_mul(vfs.f_frsize);
            }
        }
        if disks.is_empty() {
            return Err(Error::new(Kind::Io, "usage: no place works"));
        }
        Ok(disks.values().fold(Usage::default(), |all, disk| Usage {
            bytes_total: all.bytes_total.saturating_add(disk.bytes_total),
            bytes_free: all.bytes_free.saturating_add(disk.bytes_free),
        }))
    }

    /// The segments of a place that works.
    pub(crate) fn log(&self, place: usize) -> Result<&Log> {
        self.place(place)?.log.as_ref().map_err(Clone::clone)
    }

    fn place(&self, place: usize) -> Result<&Place> {
        self.places
            .get(place)
            .ok_or_else(|| Error::new(Kind::Invalid, format!("place {place} does not exist")))
    }
}
