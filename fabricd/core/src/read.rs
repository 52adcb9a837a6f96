//! Every read of the tables, for front ends, the daemon and the state machine itself.

use alloc::vec::Vec;

use kos_types::{
    Attr, Dirent, Error, Extent, ExtentMap, FileKind, Ino, Kind, ROOT, Result, SessionId, Source, StripeId,
    limits,
};

use crate::record::{Dentry, ExtentRecord, Inode, Place, Session, State, Stripe};
use crate::{Tables, keys};

/// Records taken from the tables at once by the listings that answer everything.
const SCAN: usize = 1024;
/// Names in a path: a ring of directories must not go on for ever.
const PATH_NAMES_MAX: usize = 4096;

/// The counters.
///
/// # Errors
/// `Io` when the tables cannot be read or were never initialised.
pub fn state<T: Tables>(tables: &T) -> Result<State> {
    let bytes = tables.get(keys::STATE)?.ok_or_else(|| Error::new(Kind::Io, "state: none"))?;
    State::decode(&bytes)
}

/// # Errors
/// `Stale` when it is gone.
pub fn inode<T: Tables>(tables: &T, ino: Ino) -> Result<Inode> {
    match tables.get(&keys::inode(ino))? {
        Some(bytes) => Inode::decode(ino, &bytes),
        None => Err(Error::new(Kind::Stale, "inode: gone")),
    }
}

/// # Errors
/// `Stale`, `NotDir`.
pub fn dir<T: Tables>(tables: &T, ino: Ino) -> Result<Inode> {
    let inode = inode(tables, ino)?;
    if inode.attr.kind != FileKind::Dir {
        return Err(Error::new(Kind::NotDir, "not a directory"));
    }
    Ok(inode)
}

/// # Errors
/// `Io`.
pub fn dentry<T: Tables>(tables: &T, parent: Ino, name: &[u8]) -> Result<Option<Dentry>> {
    tables.get(&keys::dentry(parent, name))?.map(|bytes| Dentry::decode(&bytes)).transpose()
}

/// # Errors
/// `NotFound`, `NotDir`, `NameTooLong`, `Stale`.
pub fn lookup<T: Tables>(tables: &T, parent: Ino, name: &[u8]) -> Result<Attr> {
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(Error::new(Kind::NameTooLong, "lookup"));
    }
    match dentry(tables, parent, name)? {
        Some(found) => Ok(inode(tables, found.ino)?.attr),
        None => {
            dir(tables, parent)?;
            Err(Error::new(Kind::NotFound, "lookup"))
        }
    }
}

/// A directory that holds a name of `ino`; none for the root and for orphans.
///
/// # Errors
/// `Io`.
pub fn any_parent<T: Tables>(tables: &T, ino: Ino) -> Result<Option<Ino>> {
    let prefix = keys::back_links(ino);
    let found = tables.scan(&prefix, &keys::end_of(&prefix), 1)?;
    Ok(found.first().map(|(key, _)| Ino(keys::field(key, prefix.len()))))
}

/// The directory that an inode was made in without a name, if it has none since then; none for what was removed.
///
/// # Errors
/// `Io`.
pub fn made_in<T: Tables>(tables: &T, ino: Ino) -> Result<Option<Ino>> {
    let dir = tables.get(&keys::orphan(ino))?.filter(|dir| !dir.is_empty());
    Ok(dir.map(|dir| Ino(keys::field(&dir, 0))))
}

/// A path of an inode below the root, for people to read: one that is gone or has no name has `?`.
///
/// # Errors
/// `Io`.
pub fn path<T: Tables>(tables: &T, ino: Ino) -> Result<Vec<u8>> {
    let (mut names, mut at) = (Vec::new(), ino);
    while at != ROOT && names.len() < PATH_NAMES_MAX {
        let prefix = keys::back_links(at);
        let found = tables.scan(&prefix, &keys::end_of(&prefix), 1)?;
        let Some((key, _)) = found.first() else {
            names.push(b"?".to_vec());
            break;
        };
        names.push(key[prefix.len() + 8..].to_vec());
        at = Ino(keys::field(key, prefix.len()));
    }
    let mut out = Vec::new();
    for name in names.iter().rev() {
        out.push(b'/');
        out.extend_from_slice(name);
    }
    Ok(out)
}

/// The directory that holds a directory; the root holds itself, a removed one too.
///
/// # Errors
/// `Stale`, `NotDir`.
pub fn parent<T: Tables>(tables: &T, ino: Ino) -> Result<Ino> {
    dir(tables, ino)?;
    Ok(any_parent(tables, ino)?.unwrap_or(ino))
}

/// At most `max` entries behind position `after`, in order.
///
/// # Errors
/// `Stale`, `NotDir`.
pub fn list<T: Tables>(tables: &T, ino: Ino, after: u64, max: usize) -> Result<Vec<Dirent>> {
    dir(tables, ino)?;
    let Some(from) = after.checked_add(1) else { return Ok(Vec::new()) };
    let max = max.min(limits::LIST_ENTRIES_MAX);
    let to = keys::end_of(&keys::listings(ino));
    let mut out = Vec::new();
    for (key, value) in tables.scan(&keys::listing(ino, from), &to, max)? {
        let (target, name) = listed(&value)?;
        // Reads do not stop the committer: the entry may be gone since the scan.
        if let Some(bytes) = tables.get(&keys::inode(target))? {
            let attr = Inode::decode(target, &bytes)?.attr;
            out.push(Dirent { cookie: keys::field(&key, 9), name: name.to_vec(), attr });
        }
    }
    Ok(out)
}

/// The value of a listing record: the inode and the name.
fn listed(value: &[u8]) -> Result<(Ino, &[u8])> {
    let short = || Error::new(Kind::Io, "listing record: too short");
    let (ino, name) = unborn(value)?.split_first_chunk().ok_or_else(short)?;
    Ok((Ino(u64::from_le_bytes(*ino)), name))
}

/// Whether a directory has no entries.
///
/// # Errors
/// `Io`.
pub fn is_empty_dir<T: Tables>(tables: &T, ino: Ino) -> Result<bool> {
    let prefix = keys::listings(ino);
    Ok(tables.scan(&prefix, &keys::end_of(&prefix), 1)?.is_empty())
}

/// Target of a symbolic link.
///
/// # Errors
/// `Invalid` when it is none, `Stale`.
pub fn readlink<T: Tables>(tables: &T, ino: Ino) -> Result<Vec<u8>> {
    let inode = inode(tables, ino)?;
    if inode.attr.kind != FileKind::Symlink {
        return Err(Error::new(Kind::Invalid, "readlink: not a symbolic link"));
    }
    Ok(inode.target)
}

/// A record without its birth.
fn unborn(value: &[u8]) -> Result<&[u8]> {
    value.get(8..).ok_or_else(|| Error::new(Kind::Io, "record: no birth"))
}

/// The value of an extended attribute, if it is set on this inode.
///
/// # Errors
/// `Io`.
pub fn own_xattr<T: Tables>(tables: &T, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let found = tables.get(&keys::xattr(ino, name))?;
    found.map(|value| Ok(unborn(&value)?.to_vec())).transpose()
}

/// # Errors
/// `NoAttr`, `Stale`.
pub fn xattr<T: Tables>(tables: &T, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
    match own_xattr(tables, ino, name)? {
        Some(value) => Ok(value),
        None => {
            inode(tables, ino)?;
            Err(Error::new(Kind::NoAttr, "xattr"))
        }
    }
}

/// # Errors
/// `Stale`.
pub fn xattrs<T: Tables>(tables: &T, ino: Ino) -> Result<Vec<Vec<u8>>> {
    inode(tables, ino)?;
    let prefix = keys::xattrs(ino);
    let found = tables.scan(&prefix, &keys::end_of(&prefix), usize::MAX)?;
    Ok(found.into_iter().map(|(key, _)| key[prefix.len()..].to_vec()).collect())
}

/// # Errors
/// `Io`.
pub fn stripe<T: Tables>(tables: &T, id: StripeId) -> Result<Option<Stripe>> {
    tables.get(&keys::stripe(id))?.map(|bytes| Stripe::decode(&bytes)).transpose()
}

/// At most `max` extents that share a byte with `off..end`, in order, each with its offset.
///
/// # Errors
/// `Io`.
pub fn overlapping<T: Tables>(
    tables: &T,
    ino: Ino,
    off: u64,
    end: u64,
    max: usize,
) -> Result<Vec<(u64, ExtentRecord)>> {
    if off >= end {
        return Ok(Vec::new());
    }
    let mut from = off;
    // None is longer than a stripe, and none begins before the file.
    let first = off.saturating_sub(limits::STRIPE_BYTES_MAX as u64);
    if off > 0
        && let Some((key, value)) = tables.last(&keys::extent(ino, first), &keys::extent(ino, off))?
    {
        let start = keys::field(&key, 9);
        if start + ExtentRecord::decode(&value)?.len > off {
            from = start;
        }
    }
    starting(tables, ino, from, end, max)
}

/// At most `max` extents that begin in `from..end`, in order, each with its offset.
///
/// # Errors
/// `Io`.
pub fn starting<T: Tables>(
    tables: &T,
    ino: Ino,
    from: u64,
    end: u64,
    max: usize,
) -> Result<Vec<(u64, ExtentRecord)>> {
    if from >= end {
        return Ok(Vec::new());
    }
    let found = tables.scan(&keys::extent(ino, from), &keys::extent(ino, end), max)?;
    found.iter().map(|(key, value)| Ok((keys::field(key, 9), ExtentRecord::decode(value)?))).collect()
}

/// Where the bytes `off..off+len` are.
///
/// # Errors
/// `Stale`.
pub fn extents<T: Tables>(tables: &T, ino: Ino, off: u64, len: u64) -> Result<ExtentMap> {
    let size = inode(tables, ino)?.attr.size;
    let end = off.saturating_add(len).min(size);
    let mut map = ExtentMap { size, extents: Vec::new() };
    let mut at = off;
    // Every extent may have a hole before it.
    let max = limits::EXTENTS_MAX / 2;
    let found = overlapping(tables, ino, off, end, max)?;
    let mut complete = found.len() < max;
    let mut inline = 0;
    for (start, record) in found {
        let (from, to) = (start.max(off), (start + record.len).min(end));
        if from > at {
            map.extents.push(Extent { off: at, len: from - at, source: Source::Hole });
        }
        if inline >= limits::INLINE_ANSWER_MAX - limits::INLINE_BYTES_MAX {
            complete = false;
            break;
        }
        let source = match record.part(record.birth, from - start, to - from).place {
            Place::Stripe(id, at) => Source::Stripe(id, at),
            Place::Inline(bytes) => {
                inline += bytes.len();
                Source::Inline(bytes)
            }
        };
        map.extents.push(Extent { off: from, len: to - from, source });
        at = to;
    }
    if complete && at < end {
        map.extents.push(Extent { off: at, len: end - at, source: Source::Hole });
    }
    Ok(map)
}

/// Inodes without a name.
///
/// # Errors
/// `Io`.
pub fn orphans<T: Tables>(tables: &T) -> Result<Vec<Ino>> {
    let mut out = Vec::new();
    let mut from = keys::orphan(Ino(0));
    loop {
        let found = tables.scan(&from, &keys::end_of(b"O"), SCAN)?;
        let Some((last, _)) = found.last() else { return Ok(out) };
        from = last.clone();
        from.push(0);
        out.extend(found.iter().map(|(key, _)| Ino(keys::field(key, 1))));
    }
}

/// Logged sessions, and whether each has ended.
///
/// # Errors
/// `Io`.
pub fn sessions<T: Tables>(tables: &T) -> Result<Vec<(SessionId, u64, bool)>> {
    let mut out = Vec::new();
    let mut from = keys::session(SessionId(0));
    loop {
        let found = tables.scan(&from, &keys::end_of(b"C"), SCAN)?;
        let Some((last, _)) = found.last() else { return Ok(out) };
        from = last.clone();
        from.push(0);
        for (key, value) in &found {
            let session = Session::decode(value)?;
            out.push((SessionId(keys::field(key, 1)), session.epoch, session.ended));
        }
    }
}

/// At most `max` stripes that died before the second `before`, oldest first: when each died, its
/// id and its record.
///
/// # Errors
/// `Io`.
pub fn garbage<T: Tables>(tables: &T, before: u64, max: usize) -> Result<Vec<(u64, StripeId, Stripe)>> {
    let found = tables.scan(&keys::garbage(0, StripeId(0)), &keys::garbage(before, StripeId(0)), max)?;
    found
        .iter()
        .map(|(key, value)| Ok((keys::field(key, 1), StripeId(keys::field(key, 9)), Stripe::decode(value)?)))
        .collect()
}
