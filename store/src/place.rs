//! One place: whose directory it is, and what lies in it when the store opens.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use kos_types::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::log::{Found, Log};
use crate::segment;

/// The file that is locked while a store is open and says which place this is.
const LOCK: &str = "lock";

/// One directory of a store.
#[derive(Debug)]
pub(crate) struct Place {
    /// As it was given.
    pub(crate) dir: PathBuf,
    /// The segments, or why the place cannot be used.
    pub(crate) log: Result<Log>,
    /// Holds the lock.
    _lock: Option<File>,
}

impl Place {
    /// Open place `number`. A place that does not work is a place that failed, not an error.
    ///
    /// # Errors
    /// `Busy` when another store has it; `Invalid` when it is another place of this one.
    pub(crate) fn open(
        dir: &Path,
        number: usize,
        live: BTreeMap<u64, Vec<(u64, u64)>>,
        segment_bytes: u64,
        fds_max: usize,
    ) -> Result<Self> {
        let opened = claim(dir, number, !live.is_empty()).and_then(|lock| {
            let step = |e| Error::io(&format!("list {}", dir.display()), &e);
            let found = Found { files: list(dir).map_err(step)?, live };
            let dir_file = File::open(dir).map_err(step)?;
            Ok((lock, Log::open(dir.to_path_buf(), dir_file, &found, segment_bytes, fds_max)?))
        });
        match opened {
            Ok((lock, log)) => Ok(Self { dir: dir.to_path_buf(), log: Ok(log), _lock: Some(lock) }),
            Err(e) if matches!(e.kind(), Kind::Busy | Kind::Invalid) => Err(e),
            Err(e) => {
                let failed = Error::new(Kind::Io, format!("place {} failed: {e}", dir.display()));
                Ok(Self { dir: dir.to_path_buf(), log: Err(failed), _lock: None })
            }
        }
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
