//! Makes copies of sealed files, one after the other, from stripes whose every shard is checked by its
//! hash.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kos_core::read;
use kos_types::limits::BLOCK_BYTES;
use kos_types::{Attr, Error, Extent, Ino, Kind, Result, Source};
use memmap2::{Advice, MmapMut};

use crate::copies::BYTES_MIN;
use crate::inplace;
use crate::node::Inner;
use crate::spill::LOW;
use crate::worker::{Stop, Worker};

/// Between looks whether a copy is wanted.
const PERIOD: Duration = Duration::from_millis(50);
/// Between two steps of a copy: none but a look whether to end.
const STEP: Duration = Duration::ZERO;
/// Bytes mapped at once, whole huge pages: what the copier fills counts as the process's memory meanwhile.
const WINDOW: u64 = 32 << 20;
/// How often a copy follows extents that move away under it.
const TRIES_MAX: u32 = 16;

pub(crate) fn start(inner: Arc<Inner>) -> Result<Worker> {
    Worker::start("copier", move |stop| {
        while stop.sleep(PERIOD) {
            inner.copies.tidy();
            while let Some((ino, pushes)) = inner.copies.begin() {
                let copied = copy(&inner, stop, ino, pushes).inspect_err(|_| inner.copies.give_up());
                match copied {
                    Ok(()) => _ = inner.counters.copies_made.fetch_add(1, Ordering::Relaxed),
                    // It was unsealed, is gone, or finds no room.
                    Err(e) if matches!(e.kind(), Kind::Stale | Kind::NoSpace | Kind::Interrupted) => (),
                    Err(e) => inner.events.add("uncopied", &format!("copy of inode {}: {e}", ino.0)),
                }
                if !stop.sleep(STEP) {
                    return;
                }
            }
        }
    })
}

/// What a copy takes. Where most of a file is data, holes may cost memory: huge pages are read twice as fast.
pub(crate) const fn bytes_of(attr: &Attr) -> (u64, bool) {
    let dense = attr.bytes >= attr.size / 8 * 7;
    (if dense { attr.size } else { attr.bytes }, dense)
}

fn copy(inner: &Inner, stop: &Stop, ino: Ino, pushes: bool) -> Result<()> {
    let attr = read::inode(&*inner.db, ino)?.attr;
    let Some(path) = inner.copies.unfinished() else { return Ok(()) };
    if !attr.sealed || attr.size < BYTES_MIN {
        return Err(Error::new(Kind::Stale, "copy: not sealed, or small"));
    }
    let (bytes, dense) = bytes_of(&attr);
    make_room(inner, bytes, pushes)?;
    let step = |e| Error::io("copy", &e);
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(step)?;
    let made = file.set_len(attr.size).map_err(step).and_then(|()| {
        fill(inner, stop, (ino, attr.size, dense), &file)?;
        inner.copies.finish(ino, bytes)
    });
    if made.is_err() {
        // Nothing else would free its memory; a file that is not there is no error.
        drop(fs::remove_file(path));
    }
    made
}

/// Copies have at most half of the budget, and nothing moves to disk for them.
fn make_room(inner: &Inner, bytes: u64, pushes: bool) -> Result<()> {
    let missing = || -> Result<u64> {
        let (used, total) = inner.stripes.tiers().ram_usage()?;
        let own = (inner.copies.bytes() + bytes).saturating_sub(total / 2);
        Ok(own.max((used + bytes).saturating_sub(total / 100 * LOW)))
    };
    let short = missing()?;
    let (_, total) = inner.stripes.tiers().ram_usage()?;
    if short > 0 && pushes && bytes <= total / 2 {
        inner.copies.shrink(short);
    }
    if missing()? > 0 {
        return Err(Error::new(Kind::NoSpace, "copy: no room in memory"));
    }
    Ok(())
}

fn fill(inner: &Inner, stop: &Stop, (ino, size, dense): (Ino, u64, bool), to: &File) -> Result<()> {
    let mut tries = 0;
    for start in (0..size).step_by(WINDOW as usize) {
        let end = size.min(start + WINDOW);
        let mut map =
            inplace::map(to, start, (end - start) as usize).map_err(|e| Error::io("copy: map", &e))?;
        if map.advise(if dense { Advice::HugePage } else { Advice::NoHugePage }).is_err()
            && dense
            && start == 0
        {
            kos_types::log!("fabricd: this kernel has no huge pages: copies are read slower");
        }
        let mut at = start;
        while at < end {
            let extents = read::extents(&*inner.db, ino, at, end - at)?.extents;
            if extents.is_empty() {
                return Err(Error::new(Kind::Stale, "copy: the file is shorter now"));
            }
            for extent in &extents {
                if !stop.sleep(STEP) {
                    return Err(Error::new(Kind::Interrupted, "copy: the node ends"));
                }
                if !inner.copies.is_making(ino) {
                    return Err(Error::new(Kind::Stale, "copy: the file is not sealed any more"));
                }
                match fill_extent(inner, extent, &mut map, start) {
                    // Compaction has put its bytes elsewhere.
                    Err(e) if e.kind() == Kind::NotFound && tries < TRIES_MAX => {
                        tries += 1;
                        break;
                    }
                    other => other?,
                }
                at = extent.off + extent.len;
            }
        }
    }
    Ok(())
}

/// The mapping begins at byte `start` of the file.
fn fill_extent(inner: &Inner, extent: &Extent, to: &mut MmapMut, start: u64) -> Result<()> {
    if extent.source == Source::Hole {
        return Ok(());
    }
    let off = (extent.off - start) as usize;
    let range = off..off + extent.len as usize;
    // A store into a page that there is no memory for would be a signal, and this an error.
    let first = off / BLOCK_BYTES * BLOCK_BYTES;
    to.advise_range(Advice::PopulateWrite, first, range.end - first)
        .map_err(|e| Error::new(Kind::NoSpace, format!("copy: {e}")))?;
    match &extent.source {
        Source::Hole => (),
        Source::Inline(bytes) => to[range].copy_from_slice(bytes),
        &Source::Stripe(id, from) => inner.stripes.read_verified(id)?.read(from as usize, &mut to[range])?,
    }
    Ok(())
}
