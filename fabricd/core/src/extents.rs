//! What a file's ranges point at: commits, holes and clones, and the stripes' reference counts.

use alloc::vec::Vec;

use kos_types::limits::{FILE_BYTES_MAX, INLINE_BYTES_MAX, STRIPE_BYTES_MAX};
use kos_types::{Attr, Error, ExtentPut, FileKind, Ino, Kind, Policy, Result, StripeId, Time};

use crate::apply::{Effect, Txn};
use crate::record::{ExtentRecord, Inode, Place, Stripe};
use crate::{AsOf, Tables, history, keys, read, session};

/// Extents taken from the tables at once, so that a long file does not fill the memory.
const SCAN: usize = 1024;

fn file<T: Tables>(txn: &Txn<'_, T>, ino: Ino) -> Result<Inode> {
    let inode = txn.inode(ino)?;
    session::check_fence(txn, ino, txn.grant)?;
    check_kind(&inode)?;
    check_seal(&inode)?;
    Ok(inode)
}

/// Compaction may put a sealed file's bytes elsewhere: they stay the same.
pub(crate) fn check_seal(inode: &Inode) -> Result<()> {
    if inode.attr.sealed {
        return Err(Error::new(Kind::NotPermitted, "the file is sealed"));
    }
    Ok(())
}

fn check_kind(inode: &Inode) -> Result<()> {
    match inode.attr.kind {
        FileKind::File => Ok(()),
        FileKind::Dir => Err(Error::new(Kind::IsDir, "data of a directory")),
        _ => Err(Error::new(Kind::Invalid, "data of a special file")),
    }
}

/// The batch before the newest stays open for what was written when that one was used up.
const fn is_open<T>(txn: &Txn<'_, T>, batch: u64) -> bool {
    batch <= txn.state.batch && batch + 1 >= txn.state.batch
}

fn end_of(off: u64, len: u64) -> Result<u64> {
    match off.checked_add(len) {
        Some(end) if end <= FILE_BYTES_MAX => Ok(end),
        _ => Err(Error::new(Kind::TooLarge, "range: beyond the largest file")),
    }
}

/// What a commit puts into a file, in this order.
#[derive(Default)]
pub(crate) struct Puts<'a> {
    pub(crate) stripes: &'a [(StripeId, Policy, u64)],
    pub(crate) holes: &'a [(u64, u64)],
    pub(crate) extents: &'a [ExtentPut],
    pub(crate) inline: &'a [(u64, Vec<u8>)],
}

pub(crate) fn commit<T: Tables>(
    txn: &mut Txn<'_, T>,
    ino: Ino,
    &Puts { stripes, holes, extents, inline }: &Puts<'_>,
    (size_min, mtime): (u64, Option<Time>),
) -> Result<Attr> {
    let mut inode = file(txn, ino)?;
    if size_min > FILE_BYTES_MAX {
        return Err(Error::new(Kind::TooLarge, "commit: size"));
    }
    for &stripe in stripes {
        introduce(txn, stripe)?;
    }
    for &(off, len) in holes {
        let end = end_of(off, len)?;
        inode.attr.bytes -= cut(txn, ino, off, end)?;
    }
    for put in extents {
        end_of(put.off, put.len)?;
        let stripe = stripe(txn, put.stripe)?;
        if put.len == 0 || put.at.checked_add(put.len).is_none_or(|e| e > stripe.len) {
            return Err(Error::new(Kind::Invalid, "commit: extent outside its stripe"));
        }
        let place = Place::Stripe(put.stripe, put.at);
        place_at(txn, &mut inode, put.off, &ExtentRecord { birth: txn.seq(), len: put.len, place })?;
    }
    if inline.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > INLINE_BYTES_MAX {
        return Err(Error::new(Kind::Invalid, "commit: too many inline bytes"));
    }
    for (off, bytes) in inline {
        put_inline(txn, &mut inode, *off, bytes)?;
    }
    for &(id, ..) in stripes {
        // Not named by any extent, or named and overwritten by this same commit.
        if read::stripe(&txn.tables, id)?.is_some_and(|s| s.refs == 0) {
            return Err(Error::new(Kind::Invalid, "commit: stripe without an extent"));
        }
    }
    inode.attr.size = inode.attr.size.max(size_min);
    if let Some(mtime) = mtime {
        inode.attr.mtime = inode.attr.mtime.after_write(mtime, txn.now);
        inode.attr.ctime = txn.now;
    }
    Ok(txn.put_inode(inode))
}

/// Put an extent into a file, over what is there.
fn place_at<T: Tables>(
    txn: &mut Txn<'_, T>,
    inode: &mut Inode,
    off: u64,
    record: &ExtentRecord,
) -> Result<()> {
    let (ino, end) = (inode.attr.ino, off + record.len);
    // The new reference first, or the cut could free the stripe it points at.
    add_ref(txn, record)?;
    inode.attr.bytes -= cut(txn, ino, off, end)?;
    txn.tables.put(keys::extent(ino, off), record.encode());
    inode.attr.bytes += record.len;
    // Nothing may be mapped beyond the end: a later extension would show it.
    inode.attr.size = inode.attr.size.max(end);
    Ok(())
}

fn put_inline<T: Tables>(txn: &mut Txn<'_, T>, inode: &mut Inode, off: u64, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() || end_of(off, bytes.len() as u64)? > INLINE_BYTES_MAX as u64 {
        return Err(Error::new(Kind::Invalid, "commit: inline bytes beyond the head of a file"));
    }
    // One record with inline bytes right before it: what is written line by line stays one.
    let before = overlapping(txn, inode.attr.ino, off.saturating_sub(1), off)?.pop();
    let (start, bytes) = match before {
        Some((start, ExtentRecord { place: Place::Inline(mut head), .. })) => {
            head.truncate((off - start) as usize);
            head.extend_from_slice(bytes);
            (start, head)
        }
        _ => (off, bytes.to_vec()),
    };
    let record = ExtentRecord { birth: txn.seq(), len: bytes.len() as u64, place: Place::Inline(bytes) };
    place_at(txn, inode, start, &record)
}

/// A stripe that no record names yet.
fn introduce<T: Tables>(txn: &mut Txn<'_, T>, (id, policy, len): (StripeId, Policy, u64)) -> Result<()> {
    // A closed batch's unnamed ids are garbage already: their bytes may be gone.
    if !is_open(txn, id.batch()) {
        return Err(Error::new(Kind::Stale, "commit: stripe of a closed batch"));
    }
    if !(1..=STRIPE_BYTES_MAX as u64).contains(&len) {
        return Err(Error::new(Kind::Invalid, "commit: length of a stripe"));
    }
    if txn.tables.get(&keys::stripe(id))?.is_some() || txn.tables.get(&keys::tombstone(id))?.is_some() {
        return Err(Error::new(Kind::Invalid, "commit: stripe committed before"));
    }
    put_stripe(txn, id, Stripe { birth: txn.seq(), refs: 0, policy, len });
    Ok(())
}

/// No lease is needed: whoever changed an extent since it was read wins.
pub(crate) fn compact<T: Tables>(
    txn: &mut Txn<'_, T>,
    ino: Ino,
    (id, policy, len): (StripeId, Policy, u64),
    extents: &[ExtentPut],
) -> Result<()> {
    check_kind(&txn.inode(ino)?)?;
    introduce(txn, (id, policy, len))?;
    let off = extents.first().map_or(0, |first| first.off);
    let mut end = off;
    for expected in extents {
        if expected.off != end {
            return Err(Error::new(Kind::Invalid, "compact: a gap"));
        }
        let found = txn.tables.get(&keys::extent(ino, expected.off))?;
        let found = found.map(|bytes| ExtentRecord::decode(&bytes)).transpose()?;
        let same = |found: ExtentRecord| {
            found.len == expected.len && found.place == Place::Stripe(expected.stripe, expected.at)
        };
        if !found.is_some_and(same) {
            return Err(Error::new(Kind::Busy, "compact: an extent has changed"));
        }
        end = end_of(expected.off, expected.len)?;
    }
    if end - off != len {
        return Err(Error::new(Kind::Invalid, "compact: not as long as the stripe"));
    }
    let record = ExtentRecord { birth: txn.seq(), len, place: Place::Stripe(id, 0) };
    add_ref(txn, &record)?;
    cut(txn, ino, off, end)?;
    txn.tables.put(keys::extent(ino, off), record.encode());
    Ok(())
}

pub(crate) fn punch<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, off: u64, len: u64) -> Result<Attr> {
    let mut inode = file(txn, ino)?;
    let end = end_of(off, len)?;
    inode.attr.bytes -= cut(txn, ino, off, end)?;
    inode.attr.mtime = txn.now;
    inode.attr.ctime = txn.now;
    Ok(txn.put_inode(inode))
}

pub(crate) fn clone<T: Tables>(
    txn: &mut Txn<'_, T>,
    (from, from_off): (Ino, u64),
    (to, to_off): (Ino, u64),
    len: u64,
) -> Result<Attr> {
    let seen = |txn: &Txn<'_, T>, next, end| {
        read::overlapping(&AsOf::seen_by(&txn.tables, from)?, from.in_view(0), next, end, SCAN)
    };
    let source = read::inode(&AsOf::seen_by(&txn.tables, from)?, from.in_view(0))?;
    check_kind(&source)?;
    let mut inode = file(txn, to)?;
    let from_end = end_of(from_off, len)?;
    let to_end = end_of(to_off, len)?;
    if from_end > source.attr.size {
        return Err(Error::new(Kind::Invalid, "clone: beyond the end of the source"));
    }
    if from == to && from_off < to_end && to_off < from_end {
        return Err(Error::new(Kind::Invalid, "clone: ranges overlap"));
    }
    if len == 0 {
        // As a write of no bytes: neither the size nor a time changes.
        return Ok(inode.attr);
    }
    inode.attr.bytes -= cut(txn, to, to_off, to_end)?;
    let mut next = from_off;
    loop {
        let found = seen(txn, next, from_end)?;
        let Some((off, last)) = found.last() else { break };
        next = off + last.len;
        for (off, record) in found {
            let start = off.max(from_off);
            let len = (off + record.len).min(from_end) - start;
            let record = record.part(txn.seq(), start - off, len);
            add_ref(txn, &record)?;
            txn.tables.put(keys::extent(to, to_off + (start - from_off)), record.encode());
            inode.attr.bytes += len;
        }
    }
    inode.attr.size = inode.attr.size.max(to_end);
    inode.attr.mtime = txn.now;
    inode.attr.ctime = txn.now;
    Ok(txn.put_inode(inode))
}

/// Take `off..end` of a file away, splitting the extents at its ends. Answers the bytes that
/// were mapped there.
pub(crate) fn cut<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, off: u64, end: u64) -> Result<u64> {
    let mut gone = 0;
    let mut found = overlapping(txn, ino, off, end)?;
    // What was cut is behind: looking for it again would take quadratic time.
    while let Some(next) = found.last().map(|(start, last)| start + last.len) {
        let is_end = found.len() < SCAN;
        for (start, record) in found {
            let stop = start + record.len;
            gone += stop.min(end) - start.max(off);
            let (keeps_left, keeps_right) = (start < off, stop > end);
            if keeps_left {
                let left = record.part(txn.seq(), 0, off - start);
                txn.tables.put(keys::extent(ino, start), left.encode());
            } else {
                txn.tables.delete(keys::extent(ino, start));
            }
            if keeps_right {
                let right = record.part(txn.seq(), end - start, stop - end);
                txn.tables.put(keys::extent(ino, end), right.encode());
            }
            // What a snapshot holds goes to the history with its reference.
            let parts = u8::from(keeps_left) + u8::from(keeps_right);
            match (parts, history::is_held(txn, record.birth)) {
                (2, false) | (1, true) => add_ref(txn, &record)?,
                (2, true) => {
                    add_ref(txn, &record)?;
                    add_ref(txn, &record)?;
                }
                (0, false) => drop_ref(txn, &record)?,
                _ => (),
            }
        }
        if is_end {
            break;
        }
        found = read::starting(&txn.tables, ino, next, end, SCAN)?;
    }
    Ok(gone)
}

/// At most [`SCAN`] extents that share a byte with `off..end`, in order.
fn overlapping<T: Tables>(
    txn: &Txn<'_, T>,
    ino: Ino,
    off: u64,
    end: u64,
) -> Result<Vec<(u64, ExtentRecord)>> {
    read::overlapping(&txn.tables, ino, off, end, SCAN)
}

fn stripe<T: Tables>(txn: &Txn<'_, T>, id: StripeId) -> Result<Stripe> {
    read::stripe(&txn.tables, id)?.ok_or_else(|| Error::new(Kind::Stale, "stripe: gone"))
}

fn put_stripe<T: Tables>(txn: &mut Txn<'_, T>, id: StripeId, stripe: Stripe) {
    txn.tables.put(keys::stripe(id), stripe.encode());
}

/// An extent more points at its stripe, if it has one.
fn add_ref<T: Tables>(txn: &mut Txn<'_, T>, extent: &ExtentRecord) -> Result<()> {
    let Place::Stripe(id, _) = extent.place else { return Ok(()) };
    let mut record = stripe(txn, id)?;
    record.refs = record.refs.checked_add(1).ok_or_else(|| Error::new(Kind::Busy, "stripe: references"))?;
    put_stripe(txn, id, record);
    Ok(())
}

/// An extent less points at its stripe, if it has one.
pub(crate) fn drop_ref<T: Tables>(txn: &mut Txn<'_, T>, extent: &ExtentRecord) -> Result<()> {
    let Place::Stripe(id, _) = extent.place else { return Ok(()) };
    let mut record = stripe(txn, id)?;
    record.refs -= 1;
    if record.refs > 0 {
        put_stripe(txn, id, record);
        return Ok(());
    }
    txn.tables.delete(keys::stripe(id));
    // Before 1970 counts as 1970: the bytes only go later.
    let since = u64::try_from(txn.now.secs).unwrap_or(0);
    txn.tables.put(keys::garbage(since, id), record.encode());
    if is_open(txn, id.batch()) {
        txn.tables.put(keys::tombstone(id), Vec::new());
    }
    txn.effects.push(Effect::Free(id));
    Ok(())
}

/// The bytes of dead stripes are gone. Tombstones of closed batches go along, a few at a time.
pub(crate) fn collected<T: Tables>(txn: &mut Txn<'_, T>, stripes: &[(u64, StripeId)]) -> Result<()> {
    for &(since, id) in stripes {
        txn.tables.delete(keys::garbage(since, id));
    }
    let open = StripeId::in_batch(txn.state.batch.saturating_sub(1), 0);
    let Some(open) = open else { return Ok(()) };
    for (key, _) in txn.tables.scan(&keys::tombstone(StripeId(0)), &keys::tombstone(open), SCAN)? {
        txn.tables.delete(key);
    }
    Ok(())
}
