//! The store: all places of a node behind one handle.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kos_types::{Error, Kind, Result, patience};
use rustix::fs::fstatvfs;

use crate::Location;
use crate::lane::Lanes;
use crate::limits::{
    PLACES_MAX, READ_FDS_MAX, READ_LIMIT, SEGMENT_BYTES, START_LIMIT, SYNC_LIMIT, WRITE_LIMIT,
};
use crate::log::{Log, SegmentUsage};
use crate::place::{Medium, Opening, Place};
use crate::spare::Spare;

/// Shards at rest. Every method may be called from many threads at once.
#[derive(Debug)]
pub struct Store {
    places: Vec<Place>,
    /// For shards on their way to and from disks.
    spare: Spare,
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
    /// Why it takes no appends: it could not be opened, a sync has failed, or it is silent.
    pub failed: Option<Error>,
    /// Since when it is silent: questions to its disk were given up and are not answered yet.
    pub silent_since: Option<Instant>,
    /// How often it has fallen silent.
    pub silences: u64,
}

impl Store {
    /// Open the places in `dirs`; a place's number is its position there, for ever. `live` is
    /// everything the caller's index knows: what it does not name is deleted. A shard that it names
    /// and that is gone is found when it is read.
    ///
    /// A place whose directory does not work, or whose disk has not answered within 30 s, is failed: it reads and appends
    /// nothing. One whose disk does not answer later is silent: whatever is asked of it is `TimedOut`, until it has answered all that it was
    /// asked. Then it goes on as before: what is in it was not touched meanwhile.
    ///
    /// # Errors
    /// `Invalid` for 0 or more than 32 directories, for a live place that is none of them and for a
    /// directory that was another place before; `Busy` when another store has one of them.
    pub fn open(
        dirs: &[PathBuf],
        live: impl IntoIterator<Item = (usize, Location)>,
        medium: Medium,
    ) -> Result<Self> {
        Self::open_sized(dirs, live, medium, SEGMENT_BYTES)
    }

    /// [`Self::open`] with segments of another size.
    pub(crate) fn open_sized(
        dirs: &[PathBuf],
        live: impl IntoIterator<Item = (usize, Location)>,
        medium: Medium,
        segment_bytes: u64,
    ) -> Result<Self> {
        if dirs.is_empty() || dirs.len() > PLACES_MAX {
            return Err(Error::new(Kind::Invalid, format!("{} places, not 1 to {PLACES_MAX}", dirs.len())));
        }
        // They are claimed all at once below, and either of two could be first.
        if let Some((_, dir)) = dirs.iter().enumerate().find(|(nth, dir)| dirs[..*nth].contains(dir)) {
            return Err(Error::new(Kind::Busy, format!("place {} is listed twice", dir.display())));
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
        // All at once: those that hang are waited for together.
        let until = Instant::now() + patience(START_LIMIT);
        let begin = |(number, (dir, live)): (usize, (&PathBuf, &BTreeMap<u64, _>))| {
            Opening::begin(dir, number, !live.is_empty(), medium)
        };
        let begun: Vec<Opening> = dirs.iter().zip(&claims).enumerate().map(begin).collect();
        let open = |(begun, live): (Opening, _)| begun.open(until, live, (segment_bytes, fds_max));
        let places = begun.into_iter().zip(claims).map(open).collect::<Result<_>>()?;
        Ok(Self { places, spare: Spare::default() })
    }

    /// Write `parts`, together whole blocks of 4 KiB, one after the other. Stable after
    /// [`Self::sync`].
    ///
    /// # Errors
    /// `Invalid` for a length that is not; `NoSpace`; `TimedOut` from a silent place; `Io` also from one that has
    /// failed.
    pub fn append(&self, place: usize, parts: &[&[u8]]) -> Result<Location> {
        let place = self.place(place)?;
        let log = place.asked()?;
        let Some(lanes) = &place.lanes else { return log.append(parts) };
        let len = parts.iter().map(|part| part.len()).sum();
        let (log, mut bytes) = (Arc::clone(log), self.spare.take_empty(len));
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let asked = lanes.writes.ask(
            move || (log.append(&[&bytes]), log, bytes),
            // Nobody claims it any more.
            |(appended, log, _)| drop(appended.map(|location| log.free(location))),
        );
        let (appended, log, bytes) = asked?.wait_for(WRITE_LIMIT)?;
        drop(log);
        self.spare.give(bytes);
        appended
    }

    /// Return when everything appended to `place` so far is stable. Callers share one fdatasync.
    ///
    /// # Errors
    /// `TimedOut` from a silent place; `Io`, and then for every later append and sync there: what a failed fsync has
    /// lost, a second one does not tell.
    pub fn sync(&self, place: usize) -> Result<()> {
        self.sync_all([place]).pop().map_or(Ok(()), |(_, synced)| synced)
    }

    /// The same of several places at once; an answer for each.
    pub fn sync_all(&self, places: impl IntoIterator<Item = usize>) -> Vec<(usize, Result<()>)> {
        let until = Instant::now() + patience(SYNC_LIMIT);
        let ask = |number: usize| {
            let place = self.place(number)?;
            let log = place.asked()?;
            // Those that come after this call need not be waited for.
            let ticket = log.ticket();
            let Some(lanes) = &place.lanes else { return log.sync_to(ticket).map(|()| None) };
            let log = Arc::clone(log);
            lanes.syncs.ask(move || (log.sync_to(ticket), log), drop).map(Some)
        };
        let asked: Vec<_> = places.into_iter().map(|place| (place, ask(place))).collect();
        let wait = |asked: Result<Option<crate::lane::Asked<_>>>| match asked? {
            Some(asked) => {
                let (synced, log): (Result<()>, Arc<Log>) = asked.wait(until)?;
                drop(log);
                synced
            }
            None => Ok(()),
        };
        asked.into_iter().map(|(place, asked)| (place, wait(asked))).collect()
    }

    /// Fill `out` from byte `at` of a location on.
    ///
    /// # Errors
    /// `Invalid` beyond the location's end; `TimedOut` from a silent place; `NotFound` or `Io` when the bytes are
    /// lost.
    pub fn read(&self, place: usize, location: Location, at: u64, out: &mut [u8]) -> Result<()> {
        let place = self.place(place)?;
        let log = place.asked()?;
        let Some(lanes) = &place.lanes else { return log.read(location, at, out) };
        Log::check_range(location, at, out.len())?;
        // What is in the page cache needs no other thread.
        let done = if lanes.is_slow() { 0 } else { log.read_cached(location, at, out) };
        let (rest, at) = (&mut out[done..], at + done as u64);
        if rest.is_empty() {
            return Ok(());
        }
        let (log, mut bytes) = (Arc::clone(log), self.spare.take_filled(rest.len()));
        let (read, log, bytes) = lanes
            .reads
            .ask(move || (log.read(location, at, &mut bytes), log, bytes), drop)?
            .wait_for(READ_LIMIT)?;
        drop(log);
        if read.is_ok() {
            rest.copy_from_slice(&bytes);
        }
        self.spare.give(bytes);
        read
    }

    /// Give a location's blocks back. Nobody may read it any more: its bytes become zeros at once.
    /// On a place that failed or is silent nothing happens, and the next open that works deletes what is unclaimed.
    ///
    /// # Errors
    /// `Invalid` for more bytes than are live; `TimedOut`, and then it is freed late; `Io`, and then it is still live.
    pub fn free(&self, place: usize, location: Location) -> Result<()> {
        let place = self.place(place)?;
        let Ok(log) = place.asked() else { return Ok(()) };
        let Some(lanes) = &place.lanes else { return log.free(location) };
        let log = Arc::clone(log);
        let (freed, log) =
            lanes.writes.ask(move || (log.free(location), log), drop)?.wait_for(WRITE_LIMIT)?;
        drop(log);
        freed
    }

    /// Whether a sync of `place` has failed.
    #[must_use]
    pub fn poisoned(&self, place: usize) -> bool {
        self.log(place).is_ok_and(|log| log.check().is_err())
    }

    /// Whether `place` takes appends.
    #[must_use]
    pub fn works(&self, place: usize) -> bool {
        self.place(place).is_ok_and(|place| place.failed().is_none())
    }

    /// Whether the file of a live location is there and long enough, on a place that answers; what its bytes are, only
    /// reading them tells.
    #[must_use]
    pub fn holds(&self, place: usize, location: Location) -> bool {
        self.place(place).and_then(Place::asked).is_ok_and(|log| log.holds(location))
    }

    /// How each place is, in their order.
    #[must_use]
    pub fn places(&self) -> Vec<PlaceStatus> {
        let status = |place: &Place| PlaceStatus {
            dir: place.dir.clone(),
            failed: place.failed(),
            silent_since: place.lanes.as_ref().and_then(Lanes::silent_since),
            silences: place.lanes.as_ref().map_or(0, Lanes::silences),
        };
        self.places.iter().map(status).collect()
    }

    /// The segments of a place, oldest first.
    ///
    /// # Errors
    /// `Io` from a place that could not be opened.
    pub fn segments(&self, place: usize) -> Result<Vec<SegmentUsage>> {
        Ok(self.log(place)?.segments())
    }

    /// Space on all disks. The disk of a poisoned or silent place has none free unless another place is on it; where all
    /// are silent theirs count, as nothing is full. Not asked in a thread: disk filesystems answer this from memory.
    ///
    /// # Errors
    /// `Io` when no place can be asked.
    pub fn usage(&self) -> Result<Usage> {
        let mut disks = BTreeMap::<u64, Usage>::new();
        let is_silent = |place: &Place| place.asked().err().is_some_and(|e| e.kind() == Kind::TimedOut);
        let all_silent = self.places.iter().all(is_silent);
        for place in &self.places {
            let Ok(log) = &place.log else { continue };
            let (Ok(meta), Ok(vfs)) = (log.dir_file().metadata(), fstatvfs(log.dir_file())) else { continue };
            let disk = disks.entry(meta.dev()).or_default();
            disk.bytes_total = vfs.f_blocks.saturating_mul(vfs.f_frsize);
            if all_silent || place.failed().is_none() {
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
        self.place(place)?.log.as_ref().map(|log| &**log).map_err(Clone::clone)
    }

    fn place(&self, place: usize) -> Result<&Place> {
        self.places
            .get(place)
            .ok_or_else(|| Error::new(Kind::Invalid, format!("place {place} does not exist")))
    }
}
