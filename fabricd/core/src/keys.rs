//! The key of every record: a letter for the table, then big-endian fields.

use alloc::vec::Vec;

use kos_types::{Ino, JobId, Seq, SessionId, StripeId};

/// The state machine's own counters.
pub const STATE: &[u8] = b"M";
/// All of `S`: the stripes.
pub const STRIPES: &[u8] = b"S";
/// All of `E`: the extents.
pub const EXTENTS: &[u8] = b"E";

fn key(table: u8, fields: &[u64], tail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + fields.len() * 8 + tail.len());
    out.push(table);
    for field in fields {
        out.extend_from_slice(&field.to_be_bytes());
    }
    out.extend_from_slice(tail);
    out
}

/// The first key after all that begin with `prefix`.
#[must_use]
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    while let Some(byte) = out.pop() {
        if byte != 0xff {
            out.push(byte + 1);
            break;
        }
    }
    out
}

/// `I|ino`: inode.
#[must_use]
pub fn inode(ino: Ino) -> Vec<u8> {
    key(b'I', &[ino.0], &[])
}

/// `D|parent|name`: dentry.
#[must_use]
pub fn dentry(parent: Ino, name: &[u8]) -> Vec<u8> {
    key(b'D', &[parent.0], name)
}

/// `L|parent|cookie`: the name listed at that position.
#[must_use]
pub fn listing(parent: Ino, cookie: u64) -> Vec<u8> {
    key(b'L', &[parent.0, cookie], &[])
}

/// All of `L|dir`.
#[must_use]
pub fn listings(dir: Ino) -> Vec<u8> {
    key(b'L', &[dir.0], &[])
}

/// `P|ino|parent|name`: back link.
#[must_use]
pub fn back_link(ino: Ino, parent: Ino, name: &[u8]) -> Vec<u8> {
    key(b'P', &[ino.0, parent.0], name)
}

/// All of `P|ino`.
#[must_use]
pub fn back_links(ino: Ino) -> Vec<u8> {
    key(b'P', &[ino.0], &[])
}

/// `E|ino|off`: extent.
#[must_use]
pub fn extent(ino: Ino, off: u64) -> Vec<u8> {
    key(b'E', &[ino.0, off], &[])
}

/// The file whose size or extents a record is part of.
#[must_use]
pub fn mapped(key: &[u8]) -> Option<Ino> {
    matches!(key.first(), Some(b'I' | b'E')).then(|| Ino(field(key, 1)))
}

/// `X|ino|name`: extended attribute.
#[must_use]
pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    key(b'X', &[ino.0], name)
}

/// All of `X|ino`.
#[must_use]
pub fn xattrs(ino: Ino) -> Vec<u8> {
    key(b'X', &[ino.0], &[])
}

/// `S|stripe`: stripe.
#[must_use]
pub fn stripe(id: StripeId) -> Vec<u8> {
    key(b'S', &[id.0], &[])
}

/// `T|stripe`: a stripe that died while its batch is open, so that its id is not taken again.
#[must_use]
pub fn tombstone(id: StripeId) -> Vec<u8> {
    key(b'T', &[id.0], &[])
}

/// `O|ino`: orphan, an inode without a name that may still be open. Empty when its last name was removed; of one that never
/// had a name it holds the directory it was made in, big-endian.
#[must_use]
pub fn orphan(ino: Ino) -> Vec<u8> {
    key(b'O', &[ino.0], &[])
}

/// `G|time|stripe`: a dead stripe and since when, in seconds.
#[must_use]
pub fn garbage(secs: u64, id: StripeId) -> Vec<u8> {
    key(b'G', &[secs, id.0], &[])
}

/// `V|view`: snapshot.
#[must_use]
pub fn snapshot(view: u64) -> Vec<u8> {
    key(b'V', &[view], &[])
}

/// All old records.
pub const HISTORY: &[u8] = b"H";

/// Whether old versions of the record are kept for snapshots. Such a record begins with its birth.
#[must_use]
pub fn is_versioned(key: &[u8]) -> bool {
    key.first().is_some_and(|table| b"IDLPEX".contains(table))
}

/// Whether it is the key of an inode.
#[must_use]
pub fn is_inode(key: &[u8]) -> bool {
    key.first() == Some(&b'I')
}

/// Whether it is the key of an extent.
#[must_use]
pub fn is_extent(key: &[u8]) -> bool {
    key.first() == Some(&b'E')
}

/// `H|key|death`: what a versioned key held until a commit. The order is that of the keys, then of
/// the commits: names hold no byte 0, and sequence numbers begin with one.
#[must_use]
pub fn history(of: &[u8], death: Seq) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + of.len() + 8);
    out.extend_from_slice(HISTORY);
    out.extend_from_slice(of);
    out.extend_from_slice(&death.0.to_be_bytes());
    out
}

/// The key that an old record had.
#[must_use]
pub fn of_history(key: &[u8]) -> &[u8] {
    key.get(1..key.len().saturating_sub(8)).unwrap_or_default()
}

/// The commit that an old record died in.
#[must_use]
pub fn death(key: &[u8]) -> Seq {
    Seq(field(key, key.len().saturating_sub(8)))
}

/// `C|session`: session.
#[must_use]
pub fn session(id: SessionId) -> Vec<u8> {
    key(b'C', &[id.0], &[])
}

/// `K|session|seq`: the answer to a session's command.
#[must_use]
pub fn answer(id: SessionId, seq: u64) -> Vec<u8> {
    key(b'K', &[id.0, seq], &[])
}

/// `Q|user`: a user's usage and quota.
#[must_use]
pub fn user(uid: u32) -> Vec<u8> {
    key(b'Q', &[uid.into()], &[])
}

/// `U|dir`: usage and quota of a directory tree.
#[must_use]
pub fn tree(dir: Ino) -> Vec<u8> {
    key(b'U', &[dir.0], &[])
}

/// `F|ino`: the oldest grant that may write.
#[must_use]
pub fn fence(ino: Ino) -> Vec<u8> {
    key(b'F', &[ino.0], &[])
}

/// The jobs' counters.
pub const JOBS: &[u8] = b"J";

/// `J|job`: job.
#[must_use]
pub fn job(id: JobId) -> Vec<u8> {
    key(b'J', &[id.0], &[])
}

/// `J|job|t`: the text a job was submitted with.
#[must_use]
pub fn job_text(id: JobId) -> Vec<u8> {
    key(b'J', &[id.0], b"t")
}

/// `W|job`: a job that has not ended.
#[must_use]
pub fn job_active(id: JobId) -> Vec<u8> {
    key(b'W', &[id.0], &[])
}

/// The big-endian u64 at `at` of a key.
#[must_use]
pub fn field(key: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(slice) = key.get(at..at + 8) {
        bytes.copy_from_slice(slice);
    }
    u64::from_be_bytes(bytes)
}
