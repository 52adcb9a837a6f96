//! The end of a session that was not renewed in time or was fenced: nothing of it is written any
//! more, nothing it cached is read any more, every file that lost something hears of it, and only then
//! comes a new session.

use kos_types::Ino;

use super::client::{Client, FileId, OpenFile, Output, Phase};

impl Client {
    pub(super) fn lose(&mut self) {
        self.recalls.clear();
        self.held.clear();
        for running in self.running.values_mut() {
            running.lost = true;
        }
        for file in self.files.values_mut() {
            file.broken |= file.locked;
        }
        self.abandon();
    }

    fn abandon(&mut self) {
        // A request that runs now may still buffer something, or give the kernel a page.
        self.phase = Phase::Abandoning { again: !self.running.is_empty() };
        self.out.push(Output::Abandon);
    }

    pub(super) fn abandoned(&mut self, discarded: &[Ino]) {
        for file in self.files.values_mut().filter(|file| discarded.contains(&file.ino)) {
            file.owed = true;
        }
        match self.phase {
            Phase::Abandoning { again: true } => {
                self.phase = Phase::Draining;
                self.drained();
            }
            Phase::Abandoning { again: false } => {
                self.phase = Phase::Opening;
                self.out.push(Output::Open);
            }
            _ => {}
        }
    }

    /// Once the last request has ended, discard what it left.
    pub(super) fn drained(&mut self) {
        if self.phase == Phase::Draining && self.running.is_empty() {
            self.abandon();
        }
    }

    /// A file was opened.
    pub fn file_opened(&mut self, file: FileId, ino: Ino) {
        self.files.insert(file, OpenFile { ino, owed: false, locked: false, broken: false });
    }

    /// A lock was taken or given back through a file.
    pub fn file_locked(&mut self, file: FileId, locked: bool) {
        if let Some(file) = self.files.get_mut(&file) {
            file.locked = locked;
        }
    }

    /// A file was closed. Answers whether it never heard of an error.
    pub fn file_closed(&mut self, file: FileId) -> bool {
        self.files.remove(&file).is_some_and(|file| file.owed || file.broken)
    }

    /// Whether a write, fsync or close of the file must fail now: once for discarded data, always
    /// for a lost lock.
    pub fn file_fails(&mut self, file: FileId) -> bool {
        let known = self.files.get_mut(&file);
        known.is_some_and(|file| core::mem::take(&mut file.owed) || file.broken)
    }
}
