//! One place: whose directory it is, and what lies in it when the store opens.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kos_types::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::lane::{Asked, Lanes};
use crate::log::{Found, Log};
use crate::segment;

/// The file that is locked while a store is open and says which place this is.
const LOCK: &str = "lock";

/// What the places of a store are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Disks, which may hang: each is asked in threads of its own, and only waited for so long.
    Disk,
    /// Memory, which answers.
    Memory,
}

/// One directory of a store.
#[derive(Debug)]
pub(crate) struct Place {
    /// As it was given.
    pub(crate) dir: PathBuf,
    /// The segments, or why the place cannot be used.
    pub(crate) log: Result<Arc<Log>>,
    /// Where its disk is asked; memory is asked directly.
    pub(crate) lanes: Option<Lanes>,
}

/// A directory that is ours while this lives, and what lies in it.
struct Claimed {
    dir: File,
    lock: File,
    /// The length of every segment.
    files: BTreeMap<u64, u64>,
}

/// A place that is being opened.
pub(crate) struct Opening {
    dir: PathBuf,
    lanes: Option<Lanes>,
    claim: Claim,
}

enum Claim {
    Asked(Asked<Result<Claimed>>),
    Done(Result<Claimed>),
}

impl Opening {
    /// Begin to open place `number`, with shards in it where it `is_claimed`.
    pub(crate) fn begin(dir: &Path, number: usize, is_claimed: bool, medium: Medium) -> Self {
        let own = dir.to_path_buf();
        let claim = move || {
            let lock = claim(&own, number, is_claimed)?;
            let step = |e| Error::io(&format!("list {}", own.display()), &e);
            let files = list(&own).map_err(step)?;
            Ok(Claimed { dir: File::open(&own).map_err(step)?, lock, files })
        };
        let lanes = (medium == Medium::Disk).then(|| Lanes::new(&number.to_string()));
        let claim = match &lanes {
            Some(lanes) => lanes.reads.ask(claim, drop).map_or_else(|e| Claim::Done(Err(e)), Claim::Asked),
            None => Claim::Done(claim()),
        };
        Self { dir: dir.to_path_buf(), lanes, claim }
    }

    /// Open it, with what is in it. A place that does not work, or has not answered until then, is a place that failed, not
    /// an error.
    ///
    /// # Errors
    /// `Busy` when another store has it; `Invalid` when it is another place of this one.
    pub(crate) fn open(
        self,
        until: Instant,
        live: BTreeMap<u64, Vec<(u64, u64)>>,
        (segment_bytes, fds_max): (u64, usize),
    ) -> Result<Place> {
        let Self { dir, mut lanes, claim } = self;
        let claimed = match claim {
            Claim::Done(claimed) => claimed,
            Claim::Asked(asked) => asked.wait(until).unwrap_or_else(|_| {
                // What it answers later is of no use, and must not look as if the place came back.
                lanes = None;
                let why = "its disk has not answered at the start; look at the disk (dmesg), then start anew";
                Err(Error::new(Kind::Io, why))
            }),
        };
        let opened = claimed.and_then(|Claimed { dir: dir_file, lock, files }| {
            Log::open(dir.clone(), (dir_file, lock), &Found { files, live }, segment_bytes, fds_max)
        });
        let log = match opened {
            Ok(log) => Ok(Arc::new(log)),
            Err(e) if matches!(e.kind(), Kind::Busy | Kind::Invalid) => return Err(e),
            Err(e) => Err(Error::new(Kind::Io, format!("place {} failed: {e}", dir.display()))),
        };
        Ok(Place { dir, log, lanes })
    }
}

impl Place {
    /// The segments, while the place is there and answers.
    ///
    /// # Errors
    /// `Io` when it could not be opened; `TimedOut` while its disk does not answer.
    pub(crate) fn asked(&self) -> Result<&Arc<Log>> {
        self.lanes.as_ref().map_or(Ok(()), Lanes::check)?;
        self.log.as_ref().map_err(Clone::clone)
    }

    /// Why it takes no appends.
    pub(crate) fn failed(&self) -> Option<Error> {
        let silent = |e: Error| Error::new(e.kind(), format!("{}: {e}", self.dir.display()));
        self.asked().map_err(silent).and_then(|log| log.check()).err()
    }
}

/// Lock the directory as place `number`, and make it when it is new.
fn claim(dir: &Path, number: usize, claimed: bool) -> Result<File> {
    let path = dir.join(LOCK);
    let step = |e: io::Error| Error::io(&format!("lock {}", path.display()), &e);
    if !path.try_exists().map_err(step)? {
        if claimed {
            // The mount point of a disk that is not mounted looks like a new directory.
            return Err(Error::new(
                Kind::Io,
                format!(
                    "its shards are not here: is the disk mounted? To start empty, touch {}",
                    path.display()
                ),
            ));
        }
        make_dir(dir).map_err(step)?;
    }
    let mut lock = open_lock(&path).map_err(step)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let why = "is in use: stop the daemon that has it (kos down), and list no directory twice";
            return Err(Error::new(Kind::Busy, format!("place {} {why}", dir.display())));
        }
        Err(errno) => return Err(step(errno.into())),
    }
    let mine = format!("kosfs place {number}\n");
    let mut said = String::new();
    lock.read_to_string(&mut said).map_err(step)?;
    if said.is_empty() {
        lock.write_all(mine.as_bytes()).and_then(|()| lock.sync_all()).map_err(step)?;
    } else if said != mine {
        // As another place its segments would be unclaimed, and deleted.
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "{} is listed as place {number} but was '{}': keep the order",
                dir.display(),
                said.trim()
            ),
        ));
    }
    Ok(lock)
}

/// Open the lock file; on a filesystem that turned read-only, as it is: what lies there can still
/// be read.
fn open_lock(path: &Path) -> io::Result<File> {
    let writable = File::options().read(true).write(true).create(true).truncate(false).open(path);
    match writable {
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        other => other,
    }
}

/// Make a directory and make it stay: its name in its parent must survive a power cut as well as
/// the shards in it do.
fn make_dir(dir: &Path) -> io::Result<()> {
    let whole = std::path::absolute(dir)?;
    let made = whole.ancestors().take_while(|path| !path.exists()).count();
    fs::create_dir_all(dir)?;
    for parent in whole.ancestors().skip(1).take(made.max(1)) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// The length of every segment in a directory.
fn list(dir: &Path) -> io::Result<BTreeMap<u64, u64>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(segment::number) {
            files.insert(number, entry.metadata()?.len());
        }
    }
    Ok(files)
}
