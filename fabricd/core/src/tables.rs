//! The seam to the ordered key-value tables, and the overlay in which one command runs.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Bound;

use kos_types::Result;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What a command changed: a value, or `None` for a deletion.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Ordered tables, read at one applied index.
pub trait Tables {
    /// The value of a key.
    ///
    /// # Errors
    /// `Io` when the tables cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// At most `max` pairs with `from <= key < to`, in order.
    ///
    /// # Errors
    /// `Io` when the tables cannot be read.
    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>>;

    /// The last pair with `from <= key <= last`.
    ///
    /// # Errors
    /// `Io` when the tables cannot be read.
    fn last(&self, from: &[u8], last: &[u8]) -> Result<Option<Pair>>;
}

/// Tables in memory, for tests and the simulator.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MemTables(BTreeMap<Vec<u8>, Vec<u8>>);

impl MemTables {
    /// Put a command's changes in force.
    pub fn write(&mut self, changes: Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    /// All pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.0.iter()
    }
}

impl Tables for MemTables {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        Ok(self.0.range::<[u8], _>(range).take(max).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn last(&self, from: &[u8], last: &[u8]) -> Result<Option<Pair>> {
        let range = (Bound::Included(from), Bound::Included(last));
        Ok(self.0.range::<[u8], _>(range).next_back().map(|(k, v)| (k.clone(), v.clone())))
    }
}

/// Tables with one command's changes on top, dropped when the command is refused; or those of several
/// that are written together.
#[derive(Debug)]
pub struct Overlay<'a, T> {
    base: &'a T,
    changes: Changes,
    /// What was read below: a command asks for some keys several times.
    seen: RefCell<BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl<'a, T: Tables> Overlay<'a, T> {
    /// No changes yet.
    pub fn new(base: &'a T) -> Self {
        Self { base, changes: Changes::new(), seen: RefCell::default() }
    }

    /// The tables below.
    pub const fn base(&self) -> &T {
        self.base
    }

    /// The value of a key before any change.
    ///
    /// # Errors
    /// `Io` when the tables cannot be read.
    pub fn before(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(value) = self.seen.borrow().get(key) {
            return Ok(value.clone());
        }
        let value = self.base.get(key)?;
        self.seen.borrow_mut().insert(key.to_vec(), value.clone());
        Ok(value)
    }

    /// What changed so far.
    pub fn changed(&self) -> impl Iterator<Item = (&Vec<u8>, &Option<Vec<u8>>)> {
        self.changes.iter()
    }

    /// Put what a command changed, which was run on top of this, in force here.
    pub fn absorb(&mut self, changes: Changes) {
        self.changes.extend(changes);
    }

    /// What changed.
    pub fn into_changes(self) -> Changes {
        self.changes
    }

    /// Set the value of a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    /// Take a key away, also one that is not there.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }
}

impl<T: Tables> Tables for Overlay<'_, T> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.before(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let changed: Vec<_> = self.changes.range::<[u8], _>(range).collect();
        // Each deletion can hide one base pair, so ask for that many more.
        let base = self.base.scan(from, to, max.saturating_add(changed.len()))?;
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
        for (key, value) in changed {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(max).collect())
    }

    fn last(&self, from: &[u8], last: &[u8]) -> Result<Option<Pair>> {
        let range = (Bound::Included(from), Bound::Included(last));
        let added = self
            .changes
            .range::<[u8], _>(range)
            .rev()
            .find_map(|(k, v)| v.as_ref().map(|v| (k.clone(), v.clone())));
        let mut upto = last.to_vec();
        let below = loop {
            match self.base.last(from, &upto)? {
                // Deleted or overwritten in the overlay: look below it.
                Some((key, _)) if self.changes.contains_key(&key) => match predecessor(&key) {
                    Some(next) if next.as_slice() >= from => upto = next,
                    _ => break None,
                },
                found => break found,
            }
        };
        Ok(added.max(below))
    }
}

/// A key that sorts below `key` with no fixed-length key between them.
pub(crate) fn predecessor(key: &[u8]) -> Option<Vec<u8>> {
    let mut out = key.to_vec();
    for byte in out.iter_mut().rev() {
        if *byte > 0 {
            *byte -= 1;
            return Some(out);
        }
        *byte = 0xff;
    }
    None
}
