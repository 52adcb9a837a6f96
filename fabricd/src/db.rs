//! RocksDB as the tables of the state machine, and as the index of the shards on this node.
//!
//! What it has in memory it answers on the caller's thread. What needs the disk is asked in threads of its own, and waited
//! for only so long (docs/adr/0082).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kos_core::{Changes, Pair, Tables, keys};
use kos_store::lane::{Lanes, SYNC_LIMIT, WRITE_LIMIT};
use kos_store::{PlaceStatus, fault};
use kos_types::{Error, Ino, Kind, Result};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, ErrorKind, ReadOptions, ReadTier, WriteBatch,
    WriteOptions,
};
use rustix::fs::fstatvfs;

use crate::maps::Maps;
use crate::turn::{Held, Turn};

/// Memory for blocks read from disk.
const CACHE_BYTES: usize = 64 << 20;
/// Memory of one table of recent writes.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Of that for a filter of its keys: ten bits for each of 200,000.
const FILTER_RATIO: f64 = 0.01;
/// Bytes of logs kept for recovery: what a start has to replay.
const WAL_BYTES_MAX: u64 = 256 << 20;
/// Open table files.
const FILES_MAX: i32 = 256;
/// What is waited for a read, of which there is no other copy: as long as for a change.
const READ_LIMIT: Duration = WRITE_LIMIT;
/// With less room than this the disk may refuse the log's next append: others fill it, and tables and the log take some
/// 70 MiB at once.
const NEARLY_FULL_BYTES: u64 = 256 << 20;

/// A sync that may begin.
pub(crate) struct Syncing {
    _quiet: Option<Held>,
}

/// Whose thread appends a change to the log, which may hang with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The caller's while the disk is quick: another thread would cost a small change more than the append.
    Caller,
    /// One of the disk's, so that the caller waits for it only so long.
    Lane,
}

/// The database of one node.
pub(crate) struct Db {
    own: Arc<Own>,
    dir: PathBuf,
    dir_file: File,
    /// Held while a change is written.
    changing: Turn,
    lanes: Lanes,
    /// To read what is in memory.
    in_memory: ReadOptions,
}

/// What a question to the disk refers to.
struct Own {
    db: DB,
    /// What was looked up lately in it.
    maps: Maps,
    /// The last change was refused, or may have been. Only asked and changed by whoever has the turn.
    refused: AtomicBool,
    /// A sync has failed that nobody waited for any more.
    lost: AtomicBool,
    /// Called when a change is in force that was given up.
    late: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Own {
    fn append(&self, batch: WriteBatch, files: &[Ino]) -> Result<()> {
        let append = || {
            fault::at(fault::TABLES_WRITE).map_err(|e| Error::io("metadata: write", &e))?;
            self.db.write_opt(batch, &WriteOptions::default()).map_err(io("metadata: write"))?;
            fault::at(fault::TABLES_WRITTEN).map_err(|e| Error::io("metadata: written", &e))
        };
        let appended = self.maps.change(files, append);
        self.refused.fetch_or(appended.is_err(), Ordering::Relaxed);
        appended
    }
}

/// What is told of a change that was given up, and of those behind it.
pub(crate) fn unanswered(e: Error) -> Error {
    let what = "metadata: its disk does not answer; what was asked may still be done";
    if e.kind() == Kind::TimedOut { Error::new(Kind::Io, what) } else { e }
}

fn io(step: &'static str) -> impl Fn(rocksdb::Error) -> Error {
    move |e| {
        // RocksDB tells a full disk only in words.
        let text = e.to_string();
        let kind = if text.contains("No space left") { Kind::NoSpace } else { Kind::Io };
        Error::new(kind, format!("{step}: {text}"))
    }
}

impl Db {
    /// Open or make the database in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        // Most commands look for names and attributes that are not there: without a walk through the table.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(FILTER_RATIO);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_max_open_files(FILES_MAX);
        options.set_keep_log_file_num(4);
        options.set_max_background_jobs(2);
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        blocks.set_bloom_filter(10.0, false);
        // In pieces: the whole filter of a table of half a million names is larger than what one part
        // of the cache holds, and was read anew for each name.
        blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        blocks.set_partition_filters(true);
        blocks.set_metadata_block_size(4096);
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_pin_top_level_index_and_filter(true);
        options.set_block_based_table_factory(&blocks);
        let db = DB::open(&options, dir).map_err(io("metadata: open"))?;
        let dir_file = File::open(dir).map_err(|e| Error::io("metadata: directory", &e))?;
        let own = Own {
            db,
            maps: Maps::default(),
            refused: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            late: OnceLock::new(),
        };
        Ok(Self {
            own: Arc::new(own),
            dir: dir.to_path_buf(),
            dir_file,
            changing: Turn::default(),
            lanes: Lanes::new("metadata"),
            in_memory: in_memory(ReadOptions::default()),
        })
    }

    /// What was looked up lately.
    pub(crate) fn maps(&self) -> &Maps {
        &self.own.maps
    }

    /// # Errors
    /// `TimedOut` while the disk does not answer.
    pub(crate) fn check(&self) -> Result<()> {
        self.lanes.check()
    }

    /// How the disk is. Asked from time to time: it is here that a change on its caller's thread is found to take too long.
    pub(crate) fn status(&self) -> PlaceStatus {
        self.lanes.look(WRITE_LIMIT);
        let (silent_since, silences) = (self.lanes.silent_since(), self.lanes.silences());
        PlaceStatus { dir: self.dir.clone(), failed: None, silent_since, silences }
    }

    /// What is to be done when a change comes in force that was given up. Only the first call counts.
    pub(crate) fn when_late(&self, act: impl Fn() + Send + Sync + 'static) {
        let _ = self.own.late.set(Box::new(act));
    }

    /// Write all or none. In the operating system's hands when this returns, so that a killed
    /// process loses nothing; on stable storage after [`Self::sync`].
    ///
    /// # Errors
    /// `TimedOut` while the disk does not answer: nothing is written. `Io` and `NoSpace`: it may be written, or be later.
    pub(crate) fn write(&self, changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        self.write_by(By::Lane, changes)
    }

    /// The same; where `by` says so, a caller may be held up for as long as the disk hangs.
    pub(crate) fn write_by(
        &self,
        by: By,
        changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<()> {
        let mut batch = WriteBatch::default();
        let mut files = Vec::new();
        for (key, value) in changes {
            // The changes of one file follow each other.
            files.extend(keys::mapped(&key).filter(|ino| files.last() != Some(ino)));
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let turn = self.changing.take(|| self.check())?;
        self.append(by, turn, batch, files).map(drop)
    }

    /// Append a change to the log. The turn ends with the append, which may be long after this.
    fn append(&self, by: By, turn: Held, batch: WriteBatch, files: Vec<Ino>) -> Result<Held> {
        if by == By::Caller && !self.lanes.is_slow() {
            let _seen = self.lanes.here();
            return self.own.append(batch, &files).map(|()| turn);
        }
        let own = Arc::clone(&self.own);
        let asked = self.lanes.writes.ask(
            move || (own.append(batch, &files), own, turn),
            |(written, own, _turn)| {
                if let (Ok(()), Some(late)) = (written, own.late.get()) {
                    late();
                }
            },
        );
        let (written, _own, turn) = asked?.wait_for(WRITE_LIMIT).map_err(unanswered)?;
        written.map(|()| turn)
    }

    /// After a refused change, an error until one is taken: an empty one tells.
    pub(crate) fn take_changes_again(&self) -> Result<()> {
        self.taking_changes().map(drop)
    }

    /// The same; nothing is written while the answer lives.
    fn taking_changes(&self) -> Result<Held> {
        // Held to the end: who comes meanwhile waits for the answer, and does not take it for good.
        let turn = self.changing.take(|| self.check())?;
        if !self.own.refused.load(Ordering::Relaxed) {
            return Ok(turn);
        }
        let turn = self.append(By::Lane, turn, WriteBatch::default(), Vec::new())?;
        self.own.refused.store(false, Ordering::Relaxed);
        Ok(turn)
    }

    /// Whether a sync may begin now, which is as long as the answer lives. RocksDB takes a sync of a log that was refused an
    /// append for a failed one, and stops for good; once the disk has room it goes on by itself, with a log of its
    /// own. So where an append may be refused none is made while a sync is under way.
    ///
    /// # Errors
    /// While changes are refused.
    pub(crate) fn begin_sync(&self) -> Result<Syncing> {
        let quiet = self.taking_changes()?;
        let free = fstatvfs(&self.dir_file).map(|vfs| vfs.f_bavail.saturating_mul(vfs.f_frsize));
        // Where nobody can tell, it is.
        let is_nearly_full = free.map_or(true, |free| free < NEARLY_FULL_BYTES);
        Ok(Syncing { _quiet: is_nearly_full.then_some(quiet) })
    }

    /// Everything written before is on stable storage.
    ///
    /// # Errors
    /// `TimedOut` when the disk does not answer: it may become stable later. `Io` when nobody knows any more.
    pub(crate) fn sync(&self, begun: Syncing) -> Result<()> {
        fault::at(fault::LOG_SYNC).map_err(|e| Error::io("metadata: sync", &e))?;
        if fault::fsync_is_out() {
            return Ok(());
        }
        self.check()?;
        let own = Arc::clone(&self.own);
        let sync = move || {
            let synced = own.db.flush_wal(true).map_err(io("metadata: sync"));
            own.lost.fetch_or(synced.is_err(), Ordering::SeqCst);
            // Also one that nobody waits for any more is under way until here.
            drop(begun);
            (synced, own)
        };
        let (synced, own) = self.lanes.syncs.ask(sync, drop)?.wait_for(SYNC_LIMIT)?;
        synced?;
        if own.lost.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Io, "metadata: sync: an earlier one has failed"));
        }
        Ok(())
    }

    /// The same, by whoever shares it with nobody.
    pub(crate) fn sync_alone(&self) -> Result<()> {
        self.sync(self.begin_sync()?)
    }

    /// Do what reads with these options: on this thread what is in memory, in another one what is not.
    fn read<T: Send + 'static>(
        &self,
        step: &'static str,
        options: impl Fn() -> ReadOptions + Send + 'static,
        read: impl Fn(&DB, ReadOptions) -> std::result::Result<T, rocksdb::Error> + Send + 'static,
    ) -> Result<T> {
        match read(&self.own.db, in_memory(options())) {
            Err(e) if e.kind() == ErrorKind::Incomplete => {}
            other => return other.map_err(io(step)),
        }
        self.ask(step, move |db| read(db, options()))
    }

    /// Read from the disk.
    fn ask<T: Send + 'static>(
        &self,
        step: &'static str,
        read: impl FnOnce(&DB) -> std::result::Result<T, rocksdb::Error> + Send + 'static,
    ) -> Result<T> {
        self.lanes.check()?;
        let own = Arc::clone(&self.own);
        let asked = self.lanes.reads.ask(move || (read(&own.db), own), drop)?;
        let (found, _) = asked.wait_for(READ_LIMIT)?;
        found.map_err(io(step))
    }

    /// Every pair whose key begins with `prefix`, in order.
    pub(crate) fn each(&self, prefix: &[u8], mut f: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::end_of(prefix));
        let mut iter = self.own.db.raw_iterator_opt(options);
        iter.seek(prefix);
        while let Some((key, value)) = iter.item() {
            f(key, value)?;
            iter.next();
        }
        iter.status().map_err(io("metadata: scan"))
    }
}

impl Tables for Db {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.own.db.get_opt(key, &self.in_memory) {
            Err(e) if e.kind() == ErrorKind::Incomplete => {}
            other => return other.map_err(io("metadata: get")),
        }
        let key = key.to_vec();
        self.ask("metadata: get", move |db| db.get(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let (from, to) = (from.to_vec(), to.to_vec());
        let options = move || {
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(to.clone());
            options
        };
        self.read("metadata: scan", options, move |db, options| {
            let mut out = Vec::new();
            let mut iter = db.raw_iterator_opt(options);
            iter.seek(&from);
            while out.len() < max {
                let Some((key, value)) = iter.item() else { break };
                out.push((key.to_vec(), value.to_vec()));
                iter.next();
            }
            iter.status().map(|()| out)
        })
    }

    fn last(&self, from: &[u8], last: &[u8]) -> Result<Option<Pair>> {
        let (from, last) = (from.to_vec(), last.to_vec());
        let options = move || {
            let mut options = ReadOptions::default();
            options.set_iterate_lower_bound(from.clone());
            options
        };
        self.read("metadata: last", options, move |db, options| {
            let mut iter = db.raw_iterator_opt(options);
            iter.seek_for_prev(&last);
            let found = iter.item().map(|(key, value)| (key.to_vec(), value.to_vec()));
            iter.status().map(|()| found)
        })
    }
}

/// The same, but only what is in memory: `Incomplete` where the disk has to be asked.
fn in_memory(mut options: ReadOptions) -> ReadOptions {
    options.set_read_tier(ReadTier::BlockCache);
    options
}

/// A command's changes and the shards' together.
pub(crate) fn join(
    changes: Changes,
    more: Vec<(Vec<u8>, Option<Vec<u8>>)>,
) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    changes.into_iter().chain(more).collect()
}
