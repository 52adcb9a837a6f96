//! Programs that change files and ask for their safety in every way, each in its own directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kos_tests::Rng;
use rustix::fs::XattrFlags;

use crate::track::{ATTRIBUTE_BYTES_MAX, Track};

/// Files come back to nothing beyond this.
const LEN_MAX: usize = 1 << 20;
/// Changes that nothing acks, one after the other.
const UNACKED_MAX: usize = 8;
/// Several stripes: one fsync is one commit all the same.
const LARGE: usize = 9 << 20;
/// Less than a dirty byte waits for the flush in the background.
const SOON: Duration = Duration::from_secs(4);

/// One way to change files.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Overwrite,
    Append,
    Truncate,
    Replace,
    Names,
    Sync,
    Large,
    Attributes,
}

pub(crate) const KINDS: [Kind; 8] = [
    Kind::Overwrite,
    Kind::Append,
    Kind::Truncate,
    Kind::Replace,
    Kind::Names,
    Kind::Sync,
    Kind::Large,
    Kind::Attributes,
];
/// Extended attributes of one file.
const ATTRIBUTES: [&str; 3] = ["user.a", "user.b", "user.c"];

/// One program and what it was promised.
#[derive(Debug)]
pub(crate) struct Worker {
    kind: Kind,
    dir: PathBuf,
    rng: Rng,
    files: Vec<Track>,
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    File::options().read(true).write(true).create(true).custom_flags(flags).open(path)
}

impl Worker {
    pub(crate) fn new(kind: Kind, mem: &Path, rng: &mut Rng) -> io::Result<Self> {
        let dir = mem.join(format!("{kind:?}"));
        fs::create_dir(&dir)?;
        File::open(&dir)?.sync_all()?;
        let names = match kind {
            Kind::Names => 8,
            Kind::Replace => 2,
            Kind::Attributes => 0,
            _ => 1,
        };
        let mut files: Vec<_> = (0..names).map(|n| Track::new(dir.join(n.to_string()))).collect();
        if matches!(kind, Kind::Attributes) {
            let path = dir.join("file");
            files.extend(ATTRIBUTES.map(|name| Track::of_attribute(path.clone(), name)));
        }
        Ok(Self { kind, dir, rng: Rng::new(rng.next()), files })
    }

    /// Change files until something fails, or until told to stop; answers what failed.
    pub(crate) fn run(&mut self, stop: &AtomicBool) -> Option<io::Error> {
        while !stop.load(Ordering::SeqCst) {
            if let Err(e) = self.step() {
                return Some(e);
            }
        }
        None
    }

    /// Nothing but what it may hold is there now; what is acked stays as it is.
    pub(crate) fn check_now(&self) -> Result<(), String> {
        self.files.iter().try_for_each(|file| file.clone().check())
    }

    /// Ask for the safety of everything that is there.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        for file in &mut self.files {
            file.see()?;
            if file.now().is_some() {
                File::options().write(true).open(&file.path)?.sync_all()?;
            }
        }
        File::open(&self.dir)?.sync_all()?;
        self.files.iter_mut().for_each(Track::acked);
        Ok(())
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn acks(&self) -> u64 {
        self.files.iter().map(|file| file.acks).sum()
    }

    /// Everything promised is there, and nothing else.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.files.iter_mut().try_for_each(Track::check)?;
        if let (Kind::Replace, [file, new]) = (self.kind, &*self.files)
            && file.now().as_ref().is_some_and(|bytes| !bytes.is_empty())
            && file.now() == new.now()
        {
            return Err(format!("{}: a rename is half done", self.dir.display()));
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        match self.kind {
            Kind::Overwrite => self.overwrite(0),
            Kind::Sync => self.overwrite(libc::O_SYNC),
            Kind::Append => self.append(),
            Kind::Truncate => self.truncate(),
            Kind::Replace => self.replace(),
            Kind::Names => self.names(),
            Kind::Large => self.large(),
            Kind::Attributes => self.attributes(),
        }
    }

    fn bytes(&mut self, below: u64) -> Vec<u8> {
        let len = self.rng.below(below) as usize + 1;
        self.rng.bytes(len)
    }

    /// Write anywhere; with O_SYNC each write is a promise, else some are followed by fdatasync.
    fn overwrite(&mut self, flags: i32) -> io::Result<()> {
        let data = self.bytes(100_000);
        let at = self.rng.below((LEN_MAX - data.len()) as u64 / 2);
        let file = &mut self.files[0];
        let mut next = file.now().clone().unwrap_or_default();
        if file.now().is_none() {
            file.becomes(Some(Vec::new()));
        }
        let handle = open(&file.path, flags)?;
        next.resize(next.len().max(at as usize + data.len()), 0);
        next[at as usize..at as usize + data.len()].copy_from_slice(&data);
        file.becomes(Some(next));
        handle.write_all_at(&data, at)?;
        if flags == 0 {
            if file.unacked() < UNACKED_MAX && self.rng.below(3) > 0 {
                return Ok(());
            }
            handle.sync_data()?;
        }
        file.acked();
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let data = self.bytes(20_000);
        let file = &mut self.files[0];
        let mut next = file.now().clone().unwrap_or_default();
        if file.now().is_none() {
            file.becomes(Some(Vec::new()));
        }
        let mut handle = open(&file.path, libc::O_APPEND)?;
        if next.len() > LEN_MAX {
            next.clear();
            file.becomes(Some(next.clone()));
            handle.set_len(0)?;
        }
        next.extend_from_slice(&data);
        file.becomes(Some(next));
        handle.write_all(&data)?;
        if file.unacked() >= UNACKED_MAX || self.rng.below(2) == 0 {
            handle.sync_data()?;
            file.acked();
        }
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let data = self.bytes(200_000);
        let len = self.rng.below(data.len() as u64 * 3 / 2) as usize;
        let file = &mut self.files[0];
        let mut next = file.now().clone().unwrap_or_default();
        if file.now().is_none() {
            file.becomes(Some(Vec::new()));
        }
        next.resize(next.len().max(data.len()), 0);
        next[..data.len()].copy_from_slice(&data);
        file.becomes(Some(next.clone()));
        let handle = open(&file.path, 0)?;
        handle.write_all_at(&data, 0)?;
        handle.sync_all()?;
        file.acked();
        next.resize(len, 0);
        file.becomes(Some(next));
        handle.set_len(len as u64)?;
        handle.sync_all()?;
        file.acked();
        Ok(())
    }

    /// A new file over the old one, mostly with an fsync of it before.
    fn replace(&mut self) -> io::Result<()> {
        let data = self.bytes(60_000);
        let [file, new] = &mut *self.files else { panic!("two files") };
        new.becomes(Some(Vec::new()));
        let mut handle = File::create(&new.path)?;
        new.becomes(Some(data.clone()));
        handle.write_all(&data)?;
        // Without it the old file or the new one is promised, where there is an old one.
        if file.now().is_none() || self.rng.below(3) > 0 {
            handle.sync_all()?;
            new.acked();
        }
        new.becomes(None);
        file.becomes(Some(data));
        fs::rename(&new.path, &file.path)?;
        File::open(&self.dir)?.sync_all()?;
        new.acked();
        file.acked();
        Ok(())
    }

    /// Make and remove small files; the directory's fsync promises names, a file's its bytes too.
    fn names(&mut self) -> io::Result<()> {
        let data = self.bytes(9_000);
        let chosen = self.rng.below(self.files.len() as u64) as usize;
        let file = &mut self.files[chosen];
        if file.now().is_some() {
            file.becomes(None);
            fs::remove_file(&file.path)?;
        } else {
            file.becomes(Some(Vec::new()));
            let mut handle = File::create_new(&file.path)?;
            file.becomes(Some(data.clone()));
            handle.write_all(&data)?;
            if self.rng.below(2) == 0 {
                handle.sync_all()?;
                file.acked();
            }
        }
        if self.rng.below(3) == 0 || self.files.iter().any(|file| file.unacked() > UNACKED_MAX) {
            File::open(&self.dir)?.sync_all()?;
            self.files.iter_mut().for_each(Track::name_acked);
        }
        Ok(())
    }

    /// A file of several stripes, by several writes and one fsync.
    fn large(&mut self) -> io::Result<()> {
        let data = self.rng.bytes(LARGE);
        let file = &mut self.files[0];
        if file.now().is_none() {
            file.becomes(Some(Vec::new()));
        }
        let old = file.now().clone().unwrap_or_default();
        file.becomes(Some(data.clone()));
        let handle = open(&file.path, 0)?;
        let begun = Instant::now();
        for (at, part) in (0..).step_by(LARGE / 9).zip(data.chunks(LARGE / 9)) {
            if begun.elapsed() > SOON {
                // So slow that the flush in the background may commit in between.
                let mut mixed = data[..at].to_vec();
                mixed.extend_from_slice(old.get(at..).unwrap_or_default());
                file.becomes(Some(mixed));
                file.becomes(Some(data.clone()));
            }
            handle.write_all_at(part, at as u64)?;
        }
        handle.sync_all()?;
        file.acked();
        Ok(())
    }

    /// Set and remove extended attributes of a file; its fsync promises them.
    fn attributes(&mut self) -> io::Result<()> {
        let value = self.bytes(ATTRIBUTE_BYTES_MAX as u64);
        let chosen = self.rng.below(self.files.len() as u64) as usize;
        let track = &mut self.files[chosen];
        let name = track.attribute.expect("an attribute");
        let handle = open(&track.path, 0)?;
        if track.now().is_some() && self.rng.below(3) == 0 {
            track.becomes(None);
            rustix::fs::removexattr(&track.path, name)?;
        } else {
            track.becomes(Some(value.clone()));
            rustix::fs::setxattr(&track.path, name, &value, XattrFlags::empty())?;
        }
        if self.rng.below(3) == 0 || self.files.iter().any(|track| track.unacked() > UNACKED_MAX) {
            handle.sync_all()?;
            self.files.iter_mut().for_each(Track::acked);
        }
        Ok(())
    }
}
