//! The state directory: which directories are ours, and the small files that `kos` and the daemon leave in them for
//! each other. What the daemon keeps there besides is not looked at.

use crate::cli::{Failure, Outcome, Place};
use crate::daemon::Run;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const MARKER: &str = "kosfs-state";
/// How the names of files end that are not whole yet.
const DRAFT: &str = ".new";
const MARKER_TEXT: &str = "kosfs state, format 1\n";
/// What a fresh disk may hold and still count as empty.
pub(crate) const LOST_FOUND: &str = "lost+found";

/// Longer than the longest `up` or `down` that may hold it.
const LOCK_WAIT: Duration = Duration::from_secs(150);
const LOG_BYTES_MAX: u64 = 16 << 20;
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 15;

#[derive(Debug, Clone)]
pub(crate) struct State {
    /// As the user wrote it: what the daemon is given.
    pub(crate) given: PathBuf,
    /// Absolute, symlinks followed as far as it exists.
    pub(crate) path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Missing,
    Empty,
    Ours,
}

impl State {
    pub(crate) fn at(given: &Path) -> io::Result<Self> {
        let path = std::path::absolute(given)?;
        let path = path.canonicalize().unwrap_or(path);
        Ok(Self { given: given.to_path_buf(), path })
    }

    /// All state directories given, in order.
    pub(crate) fn all(place: &Place) -> Outcome<Vec<Self>> {
        let at = |given: &PathBuf| Self::at(given).map_err(|error| Failure::at("find", given, &error));
        place.states.iter().map(at).collect()
    }

    /// The directory that stands for the node: the first given, or the one which that belongs to.
    pub(crate) fn of_node(place: &Place) -> Outcome<Self> {
        let states = Self::all(place)?;
        let Some(state) = states.into_iter().next() else { return Err(Failure::new("no --state given")) };
        match state.belongs_to()? {
            Some(first) => Self::at(&first).map_err(|error| Failure::at("find", &first, &error)),
            None => Ok(state),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn status_file(&self) -> PathBuf {
        self.file("status.json")
    }

    /// What the directory is; one with somebody else's files is refused by name.
    pub(crate) fn condition(&self) -> Outcome<Condition> {
        let failed = |error: io::Error| Failure::at("read the state directory", &self.path, &error);
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Condition::Missing),
            Err(error) => return Err(failed(error)),
        };
        match std::fs::read_to_string(self.file(MARKER)) {
            Ok(text) if text == MARKER_TEXT => return Ok(Condition::Ours),
            Ok(text) => {
                let (dir, text) = (self.path.display(), text.trim_end());
                return Err(Failure::new(format!(
                    "{dir} says {text:?}, which this version cannot read; use the one that wrote it"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // A draft of the marker: another `up` is making this state, or one was cut short.
            let draft = name.to_str().is_some_and(|name| name.starts_with(MARKER) && name.ends_with(DRAFT));
            if name != LOST_FOUND && !draft {
                if self.file(MARKER).exists() {
                    // Another `up` has made it since the marker was looked for.
                    return self.condition();
                }
                return Err(Failure::new(format!(
                    "{} is not empty and no kosfs state (it holds {name:?}); choose an empty directory with --state",
                    self.path.display()
                )));
            }
        }
        Ok(Condition::Empty)
    }

    /// Makes the directory where it is missing, readable to root alone as raw data lies in it, and marks it as ours.
    pub(crate) fn create(&mut self) -> Outcome<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path).and_then(|()| {
            self.path = self.path.canonicalize()?;
            self.write(MARKER, MARKER_TEXT.as_bytes())
        });
        made.map_err(|error| Failure::at("make the state directory", &self.path, &error))
    }

    /// Writes a small file so that it is there, whole, after a power cut.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Each process its own, or one would rename what another is still writing.
        let draft = self.file(&format!("{name}.{}{DRAFT}", std::process::id()));
        let mut file = File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, self.file(name))?;
        File::open(&self.path)?.sync_all()
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.file(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps every other `up` and `down` of this state out until the file is dropped.
    pub(crate) fn lock(&self) -> Outcome<File> {
        let path = self.file("up.lock");
        let failed = |error: io::Error| Failure::at("lock", &path, &error);
        let start = Instant::now();
        let mut told = false;
        loop {
            let file =
                File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
            match file.try_lock() {
                // A wipe may have taken the file away while we waited for it.
                Ok(()) if same_file(&file.metadata().map_err(failed)?, &path) => return Ok(file),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::new(format!(
                        "another kos holds {}; wait for it to end",
                        path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            if !told && start.elapsed() > Duration::from_secs(1) {
                crate::cli::say("waiting for another kos up or down to end");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the daemon wrote about itself. Half a file, as a crash leaves it, counts as none.
    pub(crate) fn run(&self) -> io::Result<Option<Run>> {
        Ok(self.read("run.json")?.and_then(|json| Run::parse(&json).ok()))
    }

    pub(crate) fn forget_run(&self) -> io::Result<()> {
        self.remove("run.json")
    }

    /// Tells the supervisor which program is to replace the daemon's.
    pub(crate) fn name_upgrade(&self, program: &Path) -> io::Result<()> {
        self.write("upgrade", program.as_os_str().as_bytes())
    }

    /// The mount directory that `up` had to make.
    pub(crate) fn made_mount_dir(&self) -> io::Result<Option<PathBuf>> {
        Ok(self.read("made-mount-dir")?.map(|text| lines(&text).into_iter().next().unwrap_or_default()))
    }

    pub(crate) fn record_made_mount_dir(&self, dir: &Path) -> io::Result<()> {
        self.write("made-mount-dir", dir.as_os_str().as_bytes())
    }

    pub(crate) fn forget_made_mount_dir(&self) -> io::Result<()> {
        self.remove("made-mount-dir")
    }

    /// The directories that this node was first started with, in order; none before its first start.
    pub(crate) fn members(&self) -> io::Result<Vec<PathBuf>> {
        Ok(self.read("states")?.map_or_else(Vec::new, |text| lines(&text)))
    }

    /// Writes down which directories belong together, here and in each of the others.
    pub(crate) fn record_members(&self, states: &[Self]) -> io::Result<()> {
        let paths: Vec<&[u8]> = states.iter().map(|state| state.path.as_os_str().as_bytes()).collect();
        for other in states.iter().skip(1) {
            other.write("first-state", self.path.as_os_str().as_bytes())?;
        }
        self.write("states", &paths.join(&b'\n'))
    }

    /// The first directory of the node that this one belongs to, where it is not the first itself.
    pub(crate) fn belongs_to(&self) -> Outcome<Option<PathBuf>> {
        match self.read("first-state") {
            Ok(text) => Ok(text.and_then(|text| lines(&text).into_iter().next())),
            Err(error) => Err(Failure::at("read", &self.file("first-state"), &error)),
        }
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.path.join("log/fabricd.log")
    }

    /// Opens the daemon's log at its end; a large one is put aside first. Also says where the end is.
    pub(crate) fn open_log(&self) -> io::Result<(File, u64)> {
        std::fs::create_dir_all(self.path.join("log"))?;
        let path = self.log_file();
        if std::fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            std::fs::rename(&path, self.path.join("log/fabricd.log.1"))?;
        }
        let log = File::options().create(true).append(true).open(&path)?;
        let end = log.metadata()?.len();
        Ok((log, end))
    }

    /// Where the daemon's log ends now.
    pub(crate) fn log_end(&self) -> u64 {
        std::fs::metadata(self.log_file()).map_or(0, |log| log.len())
    }

    /// The last lines of the daemon's log behind `from`, indented, for a message; empty if there are none.
    pub(crate) fn log_tail(&self, from: u64) -> String {
        let Ok(bytes) = read_end(&self.log_file(), from) else { return String::new() };
        tail_lines(&String::from_utf8_lossy(&bytes), LOG_TAIL_LINES)
    }
}

fn same_file(held: &Metadata, path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino()))
}

fn lines(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| OsString::from_vec(line.to_vec()).into()).collect()
}

fn read_end(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = from.max(file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn tail_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(count);
    lines[start..].iter().map(|line| format!("\n  | {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        assert_eq!(tail_lines("", 2), "");
        assert_eq!(tail_lines("a\nb\nc\n", 2), "\n  | b\n  | c");
        assert_eq!(tail_lines("a", 2), "\n  | a");
    }

    #[test]
    fn paths_are_kept_a_line_each() {
        assert_eq!(lines(b"/a b\n/c\n"), [PathBuf::from("/a b"), PathBuf::from("/c")]);
        assert!(lines(b"").is_empty());
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_by_name() {
        let Ok(state) = State::at(Path::new("/proc/self")) else { panic!("no /proc/self") };
        let Err(failure) = state.condition() else { panic!("taken as ours") };
        assert!(failure.line.contains("is not empty and no kosfs state"), "{}", failure.line);
        let Ok(missing) = State::at(Path::new("/no-such-dir/kosfs")) else { panic!("no path") };
        assert!(matches!(missing.condition(), Ok(Condition::Missing)));
    }
}
