//! A bounded set of segments open for reading: the least recently used one is closed for a new
//! one. A reader keeps its file open while it reads, whatever happens here.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use crate::lock;

/// The open files of one place.
#[derive(Debug)]
pub(crate) struct Fds {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Rises with each use.
    clock: u64,
    files: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    file: Arc<File>,
}

impl Fds {
    /// At most `max` files, at least one.
    pub(crate) fn new(max: usize) -> Self {
        assert!(max > 0, "a cache of no files");
        Self { max, open: Mutex::default() }
    }

    /// The file of a segment, opened by `open` unless it is open already.
    pub(crate) fn get(&self, segment: u64, open: impl FnOnce() -> io::Result<File>) -> io::Result<Arc<File>> {
        if let Some(file) = self.opened(segment) {
            return Ok(file);
        }
        let file = Arc::new(open()?);
        let mut all = lock(&self.open);
        // Another reader may have been faster; its file is as good.
        if let Some(file) = all.touch(segment) {
            return Ok(file);
        }
        if all.files.len() >= self.max {
            // A scan of a few hundred numbers, next to an open(2).
            let oldest = all.files.iter().min_by_key(|(_, entry)| entry.used).map(|(&segment, _)| segment);
            oldest.map(|segment| all.files.remove(&segment));
        }
        let used = all.clock;
        all.files.insert(segment, Entry { used, file: Arc::clone(&file) });
        Ok(file)
    }

    /// The file of a segment if it is open.
    pub(crate) fn opened(&self, segment: u64) -> Option<Arc<File>> {
        lock(&self.open).touch(segment)
    }

    /// Close a segment that is being deleted.
    pub(crate) fn forget(&self, segment: u64) {
        lock(&self.open).files.remove(&segment);
    }

    /// How many files are open.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.open).files.len()
    }
}

impl Open {
    fn touch(&mut self, segment: u64) -> Option<Arc<File>> {
        self.clock += 1;
        let entry = self.files.get_mut(&segment)?;
        entry.used = self.clock;
        Some(Arc::clone(&entry.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_file_is_closed() {
        let fds = Fds::new(2);
        let opened = |segment| {
            let mut opened = false;
            let file = fds.get(segment, || {
                opened = true;
                File::open("/dev/null")
            });
            assert!(file.is_ok());
            opened
        };
        assert!(opened(1) && opened(2) && !opened(1) && opened(3));
        assert!(!opened(1) && opened(2), "2 was the oldest when 3 came");
        assert_eq!(fds.len(), 2);
        fds.forget(2);
        assert!(opened(2));
    }

    #[test]
    fn a_failed_open_leaves_nothing() {
        let fds = Fds::new(1);
        assert!(fds.get(1, || File::open("/nonexistent")).is_err());
        assert_eq!(fds.len(), 0);
    }
}
