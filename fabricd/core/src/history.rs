//! The past: records that a snapshot holds are kept when they are overwritten, and the tables are
//! read as they were.
//!
//! A versioned record begins with the sequence number of the commit it was born in. Overwriting or
//! deleting one while a snapshot lies between its birth and now moves it to `H|key|death`.

use alloc::vec::Vec;

use kos_types::{Error, Ino, Kind, Result, Seq, Snapshot, VIEWS, limits};

use crate::apply::Txn;
use crate::record::{ExtentRecord, SnapshotRecord};
use crate::tables::Pair;
use crate::{Tables, extents, keys};

/// Records taken from the tables at once.
const SCAN: usize = 256;

/// The birth of a versioned record.
fn birth(value: &[u8]) -> Result<Seq> {
    match value.first_chunk() {
        Some(bytes) => Ok(Seq(u64::from_le_bytes(*bytes))),
        None => Err(Error::new(Kind::Io, "record: no birth")),
    }
}

/// Before a command's changes are written: what they replace and a snapshot holds is kept.
pub(crate) fn keep<T: Tables>(txn: &mut Txn<'_, T>) -> Result<()> {
    let Some(newest) = txn.state.snapshot else { return Ok(()) };
    let mut kept = Vec::new();
    for (key, _) in txn.tables.changed().filter(|(key, _)| keys::is_versioned(key)) {
        if let Some(old) = txn.tables.before(key)?
            && birth(&old)? <= newest
        {
            kept.push((keys::history(key, txn.seq()), old));
        }
    }
    for (key, old) in kept {
        txn.tables.put(key, old);
    }
    Ok(())
}

/// Whether the record goes to the history when it is overwritten now: its references stay.
pub(crate) fn is_held<T>(txn: &Txn<'_, T>, birth: Seq) -> bool {
    txn.state.snapshot.is_some_and(|newest| birth <= newest)
}

/// Tables as they were after the commit `seq`, for the versioned records; the newest for the others.
#[derive(Debug)]
pub struct AsOf<'a, T: ?Sized> {
    tables: &'a T,
    seq: Seq,
}

impl<'a, T: Tables + ?Sized> AsOf<'a, T> {
    /// As they are now.
    pub const fn now(tables: &'a T) -> Self {
        Self { tables, seq: Seq(u64::MAX) }
    }

    /// As `ino`'s view shows them.
    ///
    /// # Errors
    /// `Stale` when the snapshot was dropped.
    pub fn seen_by(tables: &'a T, ino: Ino) -> Result<Self> {
        if ino.view() == 0 {
            return Ok(Self::now(tables));
        }
        let record = tables.get(&keys::snapshot(ino.view()))?;
        let record = record.ok_or_else(|| Error::new(Kind::Stale, "the snapshot was dropped"))?;
        Ok(Self { tables, seq: SnapshotRecord::decode(&record)?.seq })
    }

    const fn is_now(&self) -> bool {
        self.seq.0 == u64::MAX
    }

    /// The version in force among those of one key in the history.
    fn past(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let from = keys::history(key, Seq(self.seq.0 + 1));
        let found = self.tables.scan(&from, &keys::history(key, Seq(limits::SEQ_MAX)), 1)?;
        match found.into_iter().next() {
            Some((_, value)) if birth(&value)? <= self.seq => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    /// The newest record at or below `last` that is in force, among the live and the old ones.
    fn last_of(&self, from: &[u8], last: &[u8], old: bool) -> Result<Option<Pair>> {
        let (low, mut high) = if old {
            (keys::history(from, Seq(0)), keys::history(last, Seq(limits::SEQ_MAX)))
        } else {
            (from.to_vec(), last.to_vec())
        };
        while let Some((key, value)) = self.tables.last(&low, &high)? {
            let alive = birth(&value)? <= self.seq;
            if !old && alive {
                return Ok(Some((key, value)));
            }
            if old && alive && keys::death(&key) > self.seq {
                return Ok(Some((keys::of_history(&key).to_vec(), value)));
            }
            let Some(below) = crate::tables::predecessor(&key).filter(|below| *below >= low) else { break };
            high = below;
        }
        Ok(None)
    }
}

impl<T: Tables + ?Sized> Tables for AsOf<'_, T> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let live = self.tables.get(key)?;
        if self.is_now() || !keys::is_versioned(key) {
            return Ok(live);
        }
        match live {
            Some(value) if birth(&value)? <= self.seq => Ok(Some(value)),
            _ => self.past(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>> {
        if self.is_now() || !keys::is_versioned(from) {
            return self.tables.scan(from, to, max);
        }
        let mut out = Vec::new();
        let mut from = from.to_vec();
        while out.len() < max && from.as_slice() < to {
            let page = self.tables.scan(&from, to, SCAN)?;
            // Old records up to where this page of live ones ends.
            let mut next = to.to_vec();
            if page.len() == SCAN
                && let Some((key, _)) = page.last()
            {
                next = key.clone();
                next.push(0);
            }
            let mut found = self.past_between(&from, &next)?;
            for (key, value) in page {
                if birth(&value)? <= self.seq {
                    found.push((key, value));
                }
            }
            found.sort_unstable();
            out.extend(found);
            from = next;
        }
        out.truncate(max);
        Ok(out)
    }

    fn last(&self, from: &[u8], last: &[u8]) -> Result<Option<Pair>> {
        if self.is_now() || !keys::is_versioned(from) {
            return self.tables.last(from, last);
        }
        // A key has one version in force, so both are never the same.
        Ok(self.last_of(from, last, false)?.max(self.last_of(from, last, true)?))
    }
}

impl<T: Tables + ?Sized> AsOf<'_, T> {
    /// Old records in force with `from <= key < to`.
    fn past_between(&self, from: &[u8], to: &[u8]) -> Result<Vec<Pair>> {
        let (mut at, end) = (keys::history(from, Seq(0)), keys::history(to, Seq(0)));
        let mut out = Vec::new();
        loop {
            let page = self.tables.scan(&at, &end, SCAN)?;
            let Some((last, _)) = page.last() else { return Ok(out) };
            at = last.clone();
            at.push(0);
            for (key, value) in page {
                if birth(&value)? <= self.seq && keys::death(&key) > self.seq {
                    out.push((keys::of_history(&key).to_vec(), value));
                }
            }
        }
    }
}

/// All snapshots, oldest first.
///
/// # Errors
/// `Io`.
pub fn snapshots<T: Tables>(tables: &T) -> Result<Vec<Snapshot>> {
    let mut all = records(tables)?;
    all.sort_unstable_by_key(|(_, record)| record.seq);
    let shown =
        |(view, record): (u64, SnapshotRecord)| Snapshot { name: record.name, view, taken: record.taken };
    Ok(all.into_iter().map(shown).collect())
}

fn records<T: Tables>(tables: &T) -> Result<Vec<(u64, SnapshotRecord)>> {
    let found = tables.scan(&keys::snapshot(0), &keys::snapshot(VIEWS), VIEWS as usize)?;
    found.iter().map(|(key, value)| Ok((keys::field(key, 1), SnapshotRecord::decode(value)?))).collect()
}

pub(crate) fn take<T: Tables>(txn: &mut Txn<'_, T>, name: &[u8]) -> Result<Snapshot> {
    crate::namespace::check_name(name)?;
    let all = records(&txn.tables)?;
    if all.iter().any(|(_, record)| record.name == name) {
        return Err(Error::new(Kind::Exists, "snapshot"));
    }
    // A kernel may still know inodes of a dropped one: its view comes round again last.
    let free = |view: &u64| all.iter().all(|(taken, _)| taken != view);
    let after = txn.state.view;
    let view = (1..VIEWS).map(|i| (after + i - 1) % (VIEWS - 1) + 1).find(free);
    let view = view.ok_or_else(|| Error::new(Kind::Busy, "snapshot: too many; remove one"))?;
    txn.state.view = view;
    txn.state.snapshot = Some(txn.seq());
    let record = SnapshotRecord { seq: txn.seq(), taken: txn.now, name: name.to_vec() };
    txn.tables.put(keys::snapshot(view), record.encode());
    Ok(Snapshot { name: record.name, view, taken: record.taken })
}

pub(crate) fn discard<T: Tables>(txn: &mut Txn<'_, T>, name: &[u8]) -> Result<()> {
    let mut all = records(&txn.tables)?;
    let found = all.iter().position(|(_, record)| record.name == name);
    let found = found.ok_or_else(|| Error::new(Kind::NotFound, "snapshot"))?;
    let (view, _) = all.swap_remove(found);
    txn.tables.delete(keys::snapshot(view));
    txn.state.snapshot = all.iter().map(|(_, record)| record.seq).max();
    Ok(())
}

/// One step through the history: what no snapshot holds goes. Answers where the next one begins.
pub(crate) fn prune<T: Tables>(txn: &mut Txn<'_, T>, from: &[u8], max: u32) -> Result<Option<Vec<u8>>> {
    let held: Vec<Seq> = records(&txn.tables)?.into_iter().map(|(_, record)| record.seq).collect();
    let from = if from.is_empty() { keys::HISTORY } else { from };
    if !from.starts_with(keys::HISTORY) {
        return Err(Error::new(Kind::Invalid, "prune: no key of the history"));
    }
    let page = txn.tables.scan(from, &keys::end_of(keys::HISTORY), max as usize)?;
    let next = page.last().filter(|_| page.len() == max as usize).map(|(key, _)| {
        let mut next = key.clone();
        next.push(0);
        next
    });
    for (key, value) in page {
        let (birth, death) = (birth(&value)?, keys::death(&key));
        if held.iter().any(|&seq| birth <= seq && seq < death) {
            continue;
        }
        if keys::is_extent(keys::of_history(&key)) {
            extents::drop_ref(txn, &ExtentRecord::decode(&value)?)?;
        }
        txn.tables.delete(key);
    }
    Ok(next)
}
