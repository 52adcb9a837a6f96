//! Bytes: commits, holes, shared ranges, and what stripes die of it.

use std::collections::BTreeSet;

use kos_types::{Attr, ExtentPut, FileKind, Ino, Kind, Policy, StripeId, Time};

use super::{Byte, Node, Result, Spec};

/// Holes, extents and inline bytes.
type Puts<'a> = (&'a [(u64, u64)], &'a [ExtentPut], &'a [(u64, Vec<u8>)]);

fn end_of(off: u64, len: u64) -> Result<u64> {
    let end = u128::from(off) + u128::from(len);
    u64::try_from(end).ok().filter(|&end| end <= i64::MAX as u64).ok_or(Kind::TooLarge)
}

impl Spec {
    pub(super) fn commit(
        &mut self,
        ino: Ino,
        stripes: &[(StripeId, Policy, u64)],
        (holes, extents, inline): Puts<'_>,
        (size_min, mtime): (u64, Option<Time>),
    ) -> Result<Attr> {
        self.writable(ino)?;
        end_of(size_min, 0)?;
        let mut unnamed = BTreeSet::new();
        for &(id, _, len) in stripes {
            if id.batch() + 1 < self.batch || id.batch() > self.batch {
                return Err(Kind::Stale);
            }
            if !self.ever.insert(id) {
                return Err(Kind::Invalid);
            }
            self.stripes.insert(id, len);
            unnamed.insert(id);
        }
        for &(off, len) in holes {
            let end = end_of(off, len)?;
            self.writable(ino)?.data.retain(|byte, _| !(off..end).contains(byte));
            self.bury(&unnamed);
        }
        for put in extents {
            let end = end_of(put.off, put.len)?;
            let stripe_len = *self.stripes.get(&put.stripe).ok_or(Kind::Stale)?;
            if put.len == 0 || put.at.checked_add(put.len).is_none_or(|end| end > stripe_len) {
                return Err(Kind::Invalid);
            }
            unnamed.remove(&put.stripe);
            let node = self.writable(ino)?;
            node.data.extend((0..put.len).map(|i| (put.off + i, Byte::In(put.stripe, put.at + i))));
            node.attr.size = node.attr.size.max(end);
            self.bury(&unnamed);
        }
        if inline.iter().flat_map(|(_, bytes)| bytes).count() > 4096 {
            return Err(Kind::Invalid);
        }
        for (off, bytes) in inline {
            let end = end_of(*off, bytes.len() as u64)?;
            if bytes.is_empty() || end > 4096 {
                return Err(Kind::Invalid);
            }
            let node = self.writable(ino)?;
            node.data.extend((*off..).zip(bytes.iter().map(|&byte| Byte::Inline(byte))));
            node.attr.size = node.attr.size.max(end);
            self.bury(&unnamed);
        }
        if !unnamed.is_empty() {
            return Err(Kind::Invalid);
        }
        let now = self.now;
        let attr = &mut self.writable(ino)?.attr;
        attr.size = attr.size.max(size_min);
        if let Some(mtime) = mtime {
            // Back only from what somebody set to come.
            if attr.mtime > now || mtime > attr.mtime {
                attr.mtime = mtime;
            }
            attr.ctime = now;
        }
        self.stat(ino)
    }

    pub(super) fn punch(&mut self, ino: Ino, off: u64, len: u64) -> Result<Attr> {
        let node = self.writable(ino)?;
        let end = end_of(off, len)?;
        node.data.retain(|byte, _| !(off..end).contains(byte));
        self.written(ino)
    }

    pub(super) fn copy(&mut self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<Attr> {
        let source = self.file(from.0)?.clone();
        self.writable(to.0)?;
        let (from_end, to_end) = (end_of(from.1, len)?, end_of(to.1, len)?);
        if from_end > source.attr.size {
            return Err(Kind::Invalid);
        }
        if from.0 == to.0 && (from.1..from_end).any(|byte| (to.1..to_end).contains(&byte)) {
            return Err(Kind::Invalid);
        }
        if len == 0 {
            return self.stat(to.0);
        }
        let node = self.writable(to.0)?;
        for i in 0..len {
            match source.data.get(&(from.1 + i)) {
                Some(byte) => node.data.insert(to.1 + i, *byte),
                None => node.data.remove(&(to.1 + i)),
            };
        }
        node.attr.size = node.attr.size.max(to_end);
        self.written(to.0)
    }

    pub(super) fn file(&mut self, ino: Ino) -> Result<&mut Node> {
        let node = self.node_mut(ino)?;
        match node.attr.kind {
            FileKind::File => Ok(node),
            FileKind::Dir => Err(Kind::IsDir),
            _ => Err(Kind::Invalid),
        }
    }

    /// A file whose bytes may change.
    pub(super) fn writable(&mut self, ino: Ino) -> Result<&mut Node> {
        let node = self.file(ino)?;
        if node.attr.sealed { Err(Kind::NotPermitted) } else { Ok(node) }
    }

    fn written(&mut self, ino: Ino) -> Result<Attr> {
        self.bury(&BTreeSet::new());
        let now = self.now;
        let attr = &mut self.node_mut(ino)?.attr;
        attr.mtime = now;
        attr.ctime = now;
        self.stat(ino)
    }

    /// Stripes no byte is in, now or in a snapshot, are dead, but for those a commit has yet to name.
    pub(super) fn bury(&mut self, unnamed: &BTreeSet<StripeId>) {
        let past = self.snapshots.values().flat_map(|(_, nodes)| nodes.values());
        let bytes = self.nodes.values().chain(past).flat_map(|node| node.data.values());
        let used: BTreeSet<StripeId> = bytes
            .filter_map(|byte| match byte {
                Byte::In(id, _) => Some(*id),
                Byte::Inline(_) => None,
            })
            .collect();
        let since = self.now.secs.max(0).cast_unsigned();
        let dead: Vec<StripeId> =
            self.stripes.keys().filter(|id| !used.contains(id) && !unnamed.contains(id)).copied().collect();
        for id in dead {
            self.stripes.remove(&id);
            self.garbage.insert((since, id));
            self.freed.insert(id);
        }
    }
}
