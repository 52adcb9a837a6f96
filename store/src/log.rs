//! The segments of one working place: append, read, free. Ranges are reserved under a mutex and
//! written, punched and read outside of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kos_types::limits::BLOCK_BYTES;
use kos_types::{Error, Kind, Result};

use crate::fds::Fds;
use crate::flush::Flush;
use crate::{Location, fault, lock, segment};

/// How full a segment is, for a compactor to choose by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentUsage {
    /// Its number within the place.
    pub segment: u64,
    /// Bytes that somebody claims.
    pub bytes_live: u64,
    /// Bytes appended, those freed since included.
    pub bytes_total: u64,
    /// Appends still go here.
    pub active: bool,
}

/// What opening a place found and was told.
#[derive(Debug)]
pub(crate) struct Found {
    /// Length of every segment file.
    pub(crate) files: BTreeMap<u64, u64>,
    /// Live ranges of every segment, of those without a file too: offset and bytes.
    pub(crate) live: BTreeMap<u64, Vec<(u64, u64)>>,
}

/// The segments of one place.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    segment_bytes: u64,
    flush: Flush,
    fds: Fds,
    state: Mutex<State>,
    /// Held by whoever begins the next segment, which waits for the disk: the state is not locked for that.
    rolling: Mutex<()>,
    /// Holds the place's lock, for as long as anything may still be written here.
    _lock: File,
}

#[derive(Debug)]
struct State {
    /// Number of the next segment; never reused, also over restarts.
    next: u64,
    /// The file that appends go to; its number is `next - 1`.
    active: Option<Arc<File>>,
    segments: BTreeMap<u64, Segment>,
}

#[derive(Debug, Default)]
struct Segment {
    /// Where the next append goes.
    end: u64,
    /// Bytes in use.
    live: u64,
    /// Writes and punches under way.
    pending: u32,
}

impl Log {
    /// Begin a new segment and delete those that nobody claims. `dir_file` is `dir`, open, and `lock_file` its lock.
    pub(crate) fn open(
        dir: PathBuf,
        (dir_file, lock_file): (File, File),
        found: &Found,
        segment_bytes: u64,
        fds_max: usize,
    ) -> Result<Self> {
        let bytes = |ranges: &Vec<(u64, u64)>| ranges.iter().fold(0, |sum: u64, r| sum.saturating_add(r.1));
        let live = |number: &u64| found.live.get(number).map_or(0, bytes);
        let segment =
            |(&number, &end): (&u64, &u64)| (number, Segment { end, live: live(&number), pending: 0 });
        let newest = found.files.keys().chain(found.live.keys()).max();
        let next = newest.map_or(Some(0), |n| n.checked_add(1));
        let state = State {
            next: next.ok_or_else(|| Error::new(Kind::Io, "segment numbers are used up"))?,
            active: None,
            segments: found.files.iter().map(segment).collect(),
        };
        let log = Self {
            dir,
            segment_bytes,
            flush: Flush::new(dir_file),
            fds: Fds::new(fds_max),
            state: Mutex::new(state),
            rolling: Mutex::default(),
            _lock: lock_file,
        };
        // A disk that is full or read-only can still be read; each append tries again.
        let mut dead: Vec<u64> = log.roll(0).ok().flatten().into_iter().collect();
        {
            let mut state = lock(&log.state);
            dead.extend(found.files.keys().filter_map(|&number| state.take_dead(number)));
        }
        dead.into_iter().for_each(|number| log.delete(number));
        for (&number, ranges) in &found.live {
            if let Some(&end) = found.files.get(&number) {
                log.punch_gaps(number, end, ranges.clone());
            }
        }
        Ok(log)
    }

    /// Give back what lies between live ranges: appends whose owner never came to claim them.
    /// What a read-only disk refuses stays as it is.
    fn punch_gaps(&self, number: u64, end: u64, mut live: Vec<(u64, u64)>) {
        live.sort_unstable();
        // A torn tail may end within a block, which a hole up to there would not give back.
        live.push((end.next_multiple_of(BLOCK_BYTES as u64), 0));
        let Ok(file) = File::options().write(true).open(segment::path(&self.dir, number)) else { return };
        let mut at = 0;
        for (offset, len) in live {
            if offset > at {
                let _ = segment::punch(&file, at, offset - at);
            }
            at = at.max(offset.saturating_add(len));
        }
    }

    /// The directory of the place, open.
    pub(crate) const fn dir_file(&self) -> &File {
        self.flush.dir()
    }

    /// Write `parts` one after the other into a range of their own.
    pub(crate) fn append(&self, parts: &[&[u8]]) -> Result<Location> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if len == 0 || !len.is_multiple_of(BLOCK_BYTES as u64) || len > self.segment_bytes {
            return Err(Error::new(Kind::Invalid, format!("append of {len} bytes")));
        }
        self.flush.check()?;
        if self.flush.is_crowded() {
            self.flush.sync()?;
        }
        let (file, location) = self.reserve(len)?;
        let written = fault::at(fault::APPEND).and_then(|()| segment::write(&file, parts, location.offset));
        match written {
            Ok(()) => {
                self.flush.wrote(&file);
                self.settle(location, true);
                Ok(location)
            }
            Err(e) => {
                // What a punch cannot give back goes with its segment.
                let _ = segment::punch(&file, location.offset, len);
                lock(&self.state).give_back(location);
                self.settle(location, false);
                Err(Error::io(&format!("append to {}", self.dir.display()), &e))
            }
        }
    }

    /// All appends that have returned.
    pub(crate) fn ticket(&self) -> u64 {
        self.flush.ticket()
    }

    /// Return when every append that had returned when the ticket was taken is stable.
    pub(crate) fn sync_to(&self, ticket: u64) -> Result<()> {
        self.flush.sync_to(ticket)
    }

    /// The error of a sync that failed, if one has.
    pub(crate) fn check(&self) -> Result<()> {
        self.flush.check()
    }

    /// # Errors
    /// `Invalid` unless `location` has bytes at `at..at + len`.
    pub(crate) fn check_range(location: Location, at: u64, len: usize) -> Result<()> {
        let end = at.checked_add(len as u64);
        if location.is_possible() && end.is_some_and(|end| end <= location.len) {
            return Ok(());
        }
        Err(Error::new(Kind::Invalid, format!("read of {len} bytes at {at} of {location:?}")))
    }

    /// Fill the head of `out` with what is in the page cache from byte `at` of `location` on, without waiting for the
    /// disk; answers how many bytes.
    pub(crate) fn read_cached(&self, location: Location, at: u64, out: &mut [u8]) -> usize {
        let Some(file) = self.fds.opened(location.segment) else { return 0 };
        let mut done = 0;
        while done < out.len() {
            match segment::read_cached(&file, &mut out[done..], location.offset + at + done as u64) {
                Some(more) => done += more,
                None => break,
            }
        }
        done
    }

    /// Fill `out` from byte `at` of `location` on.
    pub(crate) fn read(&self, location: Location, at: u64, out: &mut [u8]) -> Result<()> {
        Self::check_range(location, at, out.len())?;
        let path = segment::path(&self.dir, location.segment);
        self.fds
            .get(location.segment, || File::open(&path))
            .and_then(|file| file.read_exact_at(out, location.offset + at))
            .map_err(|e| Error::io(&format!("read {}", path.display()), &e))
    }

    /// Whether the segment of `location` is listed and reaches to its end.
    pub(crate) fn holds(&self, location: Location) -> bool {
        let end = location.offset.checked_add(location.len);
        let state = lock(&self.state);
        state.segments.get(&location.segment).is_some_and(|s| end.is_some_and(|end| end <= s.end))
    }

    /// Give the blocks of `location` back, and its segment when this was the last of it.
    pub(crate) fn free(&self, location: Location) -> Result<()> {
        if !location.is_possible() {
            return Err(Error::new(Kind::Invalid, format!("free of {location:?}")));
        }
        {
            let mut state = lock(&self.state);
            // The file was lost before this store was opened: there is nothing to give back.
            let Some(segment) = state.segments.get_mut(&location.segment) else { return Ok(()) };
            let Some(live) = segment.live.checked_sub(location.len) else {
                return Err(Error::new(Kind::Invalid, format!("free of {location:?}: more than is live")));
            };
            segment.live = live;
            segment.pending += 1;
        }
        let path = segment::path(&self.dir, location.segment);
        let punched = fault::at(fault::FREE)
            .and_then(|()| File::options().write(true).open(&path))
            .and_then(|file| segment::punch(&file, location.offset, location.len))
            .map_err(|e| Error::io(&format!("free in {}", path.display()), &e));
        let gone = punched.as_ref().map_or_else(|e| e.kind() == Kind::NotFound, |()| true);
        self.settle(location, !gone);
        if gone { Ok(()) } else { punched }
    }

    /// All segments, oldest first.
    pub(crate) fn segments(&self) -> Vec<SegmentUsage> {
        let state = lock(&self.state);
        let usage = |(&segment, s): (&u64, &Segment)| SegmentUsage {
            segment,
            bytes_live: s.live,
            bytes_total: s.end,
            active: state.active.is_some() && segment + 1 == state.next,
        };
        state.segments.iter().map(usage).collect()
    }

    /// A range of the active segment for one append, after rolling over where it does not fit.
    fn reserve(&self, len: u64) -> Result<(Arc<File>, Location)> {
        loop {
            if let Some(reserved) = lock(&self.state).reserve(len, self.segment_bytes) {
                return Ok(reserved);
            }
            let dead = self.roll(len)?;
            dead.into_iter().for_each(|number| self.delete(number));
        }
    }

    /// Begin the next segment, unless `len` bytes have found room meanwhile. Answers the one before, when it has
    /// nothing in it.
    fn roll(&self, len: u64) -> Result<Option<u64>> {
        let _one_at_a_time = lock(&self.rolling);
        let number = {
            let state = lock(&self.state);
            if state.has_room(len, self.segment_bytes) {
                return Ok(None);
            }
            state.next
        };
        let next =
            number.checked_add(1).ok_or_else(|| Error::new(Kind::Io, "segment numbers are used up"))?;
        let file = fault::at(fault::SEGMENT)
            .and_then(|()| segment::create(&self.dir, number))
            .map_err(|e| Error::io(&format!("new segment in {}", self.dir.display()), &e))?;
        self.flush.created();
        let mut state = lock(&self.state);
        state.next = next;
        state.active = Some(Arc::new(file));
        state.segments.insert(number, Segment::default());
        Ok(number.checked_sub(1).and_then(|previous| state.take_dead(previous)))
    }

    /// An operation on `location` ends; `live` says whether the range is to be counted.
    fn settle(&self, location: Location, live: bool) {
        let dead = lock(&self.state).settle(location, live);
        dead.into_iter().for_each(|number| self.delete(number));
    }

    /// Remove the file of a segment that nobody claims. One that stays behind has no live bytes at
    /// the next open either, and goes then.
    fn delete(&self, number: u64) {
        self.fds.forget(number);
        // A newer segment must be on the disk first, or a crash could bring this number again.
        if self.flush.sync_dir().is_ok() {
            let _ = fs::remove_file(segment::path(&self.dir, number));
        }
    }
}

impl State {
    fn newest_end(&self) -> u64 {
        self.next.checked_sub(1).and_then(|newest| self.segments.get(&newest)).map_or(0, |s| s.end)
    }

    /// Whether so many bytes fit in the active segment.
    fn has_room(&self, len: u64, segment_bytes: u64) -> bool {
        self.active.is_some() && self.newest_end() + len <= segment_bytes
    }

    /// The range at the end of the active segment, if it has room.
    fn reserve(&mut self, len: u64, segment_bytes: u64) -> Option<(Arc<File>, Location)> {
        let file = self.active.as_ref().filter(|_| self.has_room(len, segment_bytes)).map(Arc::clone)?;
        let number = self.next - 1;
        let segment = self.segments.get_mut(&number).expect("the active segment is listed");
        let location = Location { segment: number, offset: segment.end, len };
        segment.end += len;
        segment.pending += 1;
        Some((file, location))
    }

    /// Take the range of a failed append for the next one, if none has come after it.
    fn give_back(&mut self, location: Location) {
        let segment = self.segments.get_mut(&location.segment).expect("pending, so not deleted");
        if segment.end == location.offset + location.len {
            segment.end = location.offset;
        }
    }

    fn settle(&mut self, location: Location, live: bool) -> Option<u64> {
        let segment = self.segments.get_mut(&location.segment).expect("pending, so not deleted");
        assert!(segment.pending > 0, "an operation ended that had not begun");
        segment.pending -= 1;
        if live {
            segment.live += location.len;
        }
        self.take_dead(location.segment)
    }

    /// Take a segment off the list when nothing is in it and nothing will be. The newest stays: the
    /// number of the next one is told from it.
    fn take_dead(&mut self, number: u64) -> Option<u64> {
        let segment = self.segments.get(&number)?;
        let dead = segment.live == 0 && segment.pending == 0 && number + 1 < self.next;
        dead.then(|| self.segments.remove(&number)).map(|_| number)
    }
}

#[cfg(test)]
impl Log {
    /// Let appends go to another file from now on.
    pub(crate) fn divert(&self, file: File) {
        lock(&self.state).active = Some(Arc::new(file));
    }

    /// How many files are open for reading.
    pub(crate) fn read_fds(&self) -> usize {
        self.fds.len()
    }
}
