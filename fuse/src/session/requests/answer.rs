//! What a request is answered with, before a session puts it into the kernel's words.

use std::fs::File;
use std::io;
use std::time::Duration;

use kos_types::{Attr, Dirent, Error, Fabric, FileKind, Ino, Kind, LockAnswer};

use crate::fs::{Caching, Fs};
use crate::jobs::names_ttl;
use crate::leases::Tell;
use crate::seal::Backing;

/// The answer, or the errno.
pub(crate) type Answer<T> = Result<T, i32>;

/// Gives one answer to the kernel.
pub(crate) trait Reply<T>: FnOnce(Answer<T>) + Send + 'static {}
impl<T, R: FnOnce(Answer<T>) + Send + 'static> Reply<T> for R {}

/// The same for bytes, which are put where the kernel takes them from.
pub(crate) trait Fill: Send + 'static {
    /// Have up to `len` bytes filled in, and answer with as many of them as that says.
    fn fill(self, len: usize, fill: impl FnOnce(&mut [u8]) -> Answer<usize>);
}

/// The same for an open, which may be of a copy that the kernel is told of first.
pub(crate) trait Open: Send + 'static {
    fn register(&self, copy: &File) -> io::Result<Backing>;
    fn opened(self, answer: Answer<(u64, Caching)>);
}

/// The same for entries of a directory.
pub(crate) trait Listing: Send + 'static {
    /// Whether the kernel counts each entry as a lookup, and is told of its attributes.
    const LOOKS_UP: bool;
    /// True when there was no room for it.
    fn add(&mut self, entry: &Dirent, ttl: Duration) -> bool;
    fn done(self, answer: Answer<()>);
}

/// Attributes, and how long the kernel may keep them, and the name if it asked by one.
pub(crate) struct Found {
    pub(crate) attr: Attr,
    pub(crate) ttl: Duration,
    /// The kernel surely takes the size for the file's.
    pub(crate) sure: bool,
}

impl Found {
    fn new<F: Fabric>(fs: &Fs<F>, attr: Attr, ttl: Duration) -> Self {
        let sure = attr.kind != FileKind::File || fs.known.sized(attr.ino, attr.size);
        Self { attr, ttl, sure }
    }
}

/// What getxattr and listxattr are answered with.
pub(crate) enum Value {
    /// How many bytes there are, for who asks with no room.
    Size(u32),
    Bytes(Vec<u8>),
}

/// What statfs(2) shows, in blocks of [`Self::BLOCK_BYTES`].
pub(crate) struct Space {
    pub(crate) blocks: u64,
    pub(crate) blocks_free: u64,
    pub(crate) files: u64,
    pub(crate) files_free: u64,
}

impl Space {
    pub(crate) const BLOCK_BYTES: u32 = 4096;
}

/// What mknod(2) may make.
pub(crate) const fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDev),
        libc::S_IFBLK => Some(FileKind::BlockDev),
        _ => None,
    }
}

pub(super) fn errno(e: &Error) -> i32 {
    if e.kind() == Kind::Io {
        kos_types::log!("kos-fuse: {e}");
    }
    e.errno()
}

pub(super) fn plain<T>(result: Result<T, Error>) -> Answer<T> {
    result.map_err(|e| errno(&e))
}

/// A name in `parent`, of which the kernel counts that it was told.
pub(super) fn entry<F: Fabric>(fs: &Fs<F>, parent: Ino, result: Result<Attr, Error>) -> Answer<Found> {
    let attr = plain(result)?;
    fs.told(attr.ino);
    let ttl = names_ttl(parent, fs.ttl(&attr));
    Ok(Found::new(fs, attr, ttl))
}

pub(super) fn attributes<F: Fabric>(fs: &Fs<F>, result: Result<Attr, Error>) -> Answer<Found> {
    let attr = plain(result)?;
    let ttl = fs.ttl(&attr);
    Ok(Found::new(fs, attr, ttl))
}

/// Answer a program that asks for a size. The kernel gives it what it is told, but ignores that for itself where it threw
/// out something of the file meanwhile; then the program would not find there what it was told of: so the kernel is told
/// first, in a way that it does not ignore.
pub(super) fn sized<F: Fabric>(fs: &Fs<F>, found: Answer<Found>, reply: impl Reply<Found>) {
    match found {
        Ok(found) if !found.sure => {
            let (ino, size) = (found.attr.ino, found.attr.size);
            fs.held.after(ino, Tell::Enlarge(size), Box::new(move || reply(Ok(found))));
        }
        found => reply(found),
    }
}

/// The size protocol of getxattr and listxattr.
pub(super) fn value(size: u32, result: Result<Vec<u8>, Error>) -> Answer<Value> {
    match plain(result)? {
        // At most 64 KiB, or 1024 names of 256 bytes.
        bytes if size == 0 => Ok(Value::Size(bytes.len() as u32)),
        bytes if bytes.len() > size as usize => Err(libc::ERANGE),
        bytes => Ok(Value::Bytes(bytes)),
    }
}

pub(super) fn locked(answer: Result<LockAnswer, Error>) -> Answer<()> {
    match plain(answer)? {
        LockAnswer::Granted => Ok(()),
        LockAnswer::Denied | LockAnswer::Waiting => Err(libc::EAGAIN),
        LockAnswer::Deadlock => Err(libc::EDEADLK),
        LockAnswer::Full => Err(libc::ENOLCK),
    }
}

/// Entries of a directory. Those of files are looked at under leases: a file that is not in `leased` ends the listing
/// for now, unless it is the first.
pub(super) fn listing<F: Fabric, L: Listing>(
    fs: &Fs<F>,
    mut reply: L,
    dir: Ino,
    after: u64,
    leased: Option<Vec<Ino>>,
) {
    let mut told = Vec::new();
    let mut first = true;
    let result = fs.list(dir, after, |entry| {
        let file = entry.attr.kind == FileKind::File;
        if file {
            // Who sees the size asks for it again.
            fs.known.sized(entry.attr.ino, entry.attr.size);
        }
        if file && !first && leased.as_ref().is_some_and(|leased| !leased.contains(&entry.attr.ino)) {
            return true;
        }
        first = false;
        let full = reply.add(entry, names_ttl(dir, fs.ttl(&entry.attr)));
        // The kernel counts each entry as a lookup, but for these two.
        if L::LOOKS_UP && !full && entry.name != b"." && entry.name != b".." {
            told.push(entry.attr.ino);
        }
        full
    });
    if result.is_ok() {
        told.into_iter().for_each(|ino| fs.told(ino));
    }
    reply.done(plain(result));
}
