//! RocksDB as the tables of the state machine, and as the index of the shards on this node.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kos_core::{Changes, Pair, Tables, keys};
use kos_store::fault;
use kos_types::{Error, Kind, Result};
use rocksdb::{BlockBasedIndexType, BlockBasedOptions, Cache, DB, ReadOptions, WriteBatch, WriteOptions};
use rustix::fs::fstatvfs;

use crate::maps::Maps;

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
/// With less room than this the disk may refuse the log's next append: others fill it, and tables and the log take some
/// 70 MiB at once.
const NEARLY_FULL_BYTES: u64 = 256 << 20;

/// A sync that may begin.
pub(crate) struct Syncing<'a> {
    _quiet: Option<MutexGuard<'a, bool>>,
}

/// The database of one node.
pub(crate) struct Db {
    db: DB,
    /// Where it is.
    dir: File,
    /// The last change was refused, or may have been. Held while one is written.
    refused: Mutex<bool>,
    /// What was looked up lately in it.
    pub(crate) maps: Maps,
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
        let dir = File::open(dir).map_err(|e| Error::io("metadata: directory", &e))?;
        Ok(Self { db, dir, refused: Mutex::default(), maps: Maps::default() })
    }

    fn refused(&self) -> MutexGuard<'_, bool> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write all or none. In the operating system's hands when this returns, so that a killed
    /// process loses nothing; on stable storage after [`Self::sync`].
    pub(crate) fn write(&self, changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
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
        let mut refused = self.refused();
        let written = self.maps.change(&files, || self.append(batch));
        *refused |= written.is_err();
        written
    }

    fn append(&self, batch: WriteBatch) -> Result<()> {
        fault::at(fault::TABLES_WRITE).map_err(|e| Error::io("metadata: write", &e))?;
        self.db.write_opt(batch, &WriteOptions::default()).map_err(io("metadata: write"))?;
        fault::at(fault::TABLES_WRITTEN).map_err(|e| Error::io("metadata: written", &e))
    }

    /// After a refused change, an error until one is taken: an empty one tells.
    pub(crate) fn take_changes_again(&self) -> Result<()> {
        self.taking_changes().map(drop)
    }

    /// The same; nothing is written while the answer lives.
    fn taking_changes(&self) -> Result<MutexGuard<'_, bool>> {
        // Held to the end: who comes meanwhile waits for the answer, and does not take it for good.
        let mut refused = self.refused();
        if *refused {
            self.append(WriteBatch::default())?;
            *refused = false;
        }
        Ok(refused)
    }

    /// Whether a sync may begin now, which is as long as the answer lives. RocksDB takes a sync of a log that was refused an
    /// append for a failed one, and stops for good; once the disk has room it goes on by itself, with a log of its
    /// own. So where an append may be refused none is made while a sync is under way.
    ///
    /// # Errors
    /// While changes are refused.
    pub(crate) fn begin_sync(&self) -> Result<Syncing<'_>> {
        let quiet = self.taking_changes()?;
        let free = fstatvfs(&self.dir).map(|vfs| vfs.f_bavail.saturating_mul(vfs.f_frsize));
        // Where nobody can tell, it is.
        let is_nearly_full = free.map_or(true, |free| free < NEARLY_FULL_BYTES);
        Ok(Syncing { _quiet: is_nearly_full.then_some(quiet) })
    }

    /// Everything written before is on stable storage.
    pub(crate) fn sync(&self, _begun: Syncing<'_>) -> Result<()> {
        fault::at(fault::LOG_SYNC).map_err(|e| Error::io("metadata: sync", &e))?;
        if fault::fsync_is_out() {
            return Ok(());
        }
        self.db.flush_wal(true).map_err(io("metadata: sync"))
    }

    /// Every pair whose key begins with `prefix`, in order.
    pub(crate) fn each(&self, prefix: &[u8], mut f: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::end_of(prefix));
        let mut iter = self.db.raw_iterator_opt(options);
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
        self.db.get(key).map_err(io("metadata: get"))
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>> {
        let mut out = Vec::new();
        if from >= to {
            return Ok(out);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mut iter = self.db.raw_iterator_opt(options);
        iter.seek(from);
        while out.len() < max {
            let Some((key, value)) = iter.item() else { break };
            out.push((key.to_vec(), value.to_vec()));
            iter.next();
        }
        iter.status().map_err(io("metadata: scan"))?;
        Ok(out)
    }

    fn last(&self, from: &[u8], last: &[u8]) -> Result<Option<Pair>> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        let mut iter = self.db.raw_iterator_opt(options);
        iter.seek_for_prev(last);
        let found = iter.item().map(|(key, value)| (key.to_vec(), value.to_vec()));
        iter.status().map_err(io("metadata: last"))?;
        Ok(found)
    }
}

/// A command's changes and the shards' together.
pub(crate) fn join(
    changes: Changes,
    more: Vec<(Vec<u8>, Option<Vec<u8>>)>,
) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    changes.into_iter().chain(more).collect()
}
