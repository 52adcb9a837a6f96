//! `kos seal` and `kos unseal`: the attribute `user.kos.seal` of files. Every path is tried, each failure is told.

use crate::cli::{self, Exit, Outcome, say};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SEAL: &str = "user.kos.seal";
/// Between two lines about a long job.
const PROGRESS: Duration = Duration::from_secs(5);

struct Job {
    seals: bool,
    recursive: bool,
    done: u64,
    failed: u64,
    told: Instant,
}

pub(crate) fn run(args: &cli::Seal, seals: bool) -> Outcome {
    let mut job = Job { seals, recursive: args.recursive, done: 0, failed: 0, told: Instant::now() };
    for path in &args.paths {
        job.path(path);
    }
    if args.recursive {
        let word = if seals { "sealed" } else { "unsealed" };
        say(format_args!("{word}: {} files", job.done));
    }
    Ok(if job.failed == 0 { Exit::Done } else { Exit::Failed })
}

impl Job {
    fn path(&mut self, path: &Path) {
        match fs::metadata(path) {
            Ok(kind) if kind.is_dir() && self.recursive => self.below(path),
            Ok(kind) if kind.is_dir() => self.fail(path, "is a directory: add -r for the files below it"),
            Ok(_) => self.change(path),
            Err(e) => self.fail(path, &e.to_string()),
        }
    }

    /// All files in a directory and below it; links are passed over.
    fn below(&mut self, top: &Path) {
        let mut dirs = vec![top.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            match entries {
                Ok(entries) => entries.iter().for_each(|entry| self.entry(entry, &mut dirs)),
                Err(e) => self.fail(&dir, &e.to_string()),
            }
        }
    }

    fn entry(&mut self, entry: &DirEntry, dirs: &mut Vec<PathBuf>) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
            Ok(kind) if kind.is_file() => self.change(&entry.path()),
            Ok(_) => (),
            Err(e) => self.fail(&entry.path(), &e.to_string()),
        }
    }

    fn change(&mut self, path: &Path) {
        match self.file(path) {
            Ok(()) => self.done += 1,
            Err(e) => self.fail(path, &why(&e)),
        }
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            say(format_args!("{} files so far, now {}", self.done, path.display()));
        }
    }

    fn file(&self, path: &Path) -> io::Result<()> {
        // Another filesystem would take the attribute for one of the user's own.
        getxattr(path, SEAL, &mut [0_u8; 16])?;
        if self.seals {
            File::open(path)?.sync_all()?;
            return Ok(setxattr(path, SEAL, b"1", XattrFlags::empty())?);
        }
        match removexattr(path, SEAL) {
            Err(Errno::NODATA) => Ok(()),
            other => Ok(other?),
        }
    }

    fn fail(&mut self, path: &Path, why: &str) {
        self.failed += 1;
        // A closed stderr is no reason to stop.
        let _unheard = writeln!(io::stderr(), "kos: {}: {why}", path.display());
    }
}

/// What an error means here.
fn why(e: &io::Error) -> String {
    match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NODATA | Errno::OPNOTSUPP) => "is not a file of kosfs".to_owned(),
        Some(Errno::BUSY) => "is in use: open for writing, or read as memory".to_owned(),
        _ => e.to_string(),
    }
}
