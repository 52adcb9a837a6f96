//! What a node tells of itself.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Events since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Stripes written.
    pub stripes_written: AtomicU64,
    /// User bytes written in stripes.
    pub bytes_written: AtomicU64,
    /// User bytes that compression left out before coding.
    pub bytes_saved: AtomicU64,
    /// User bytes read from stripes.
    pub bytes_read: AtomicU64,
    /// Dead stripes whose bytes were freed.
    pub stripes_freed: AtomicU64,
    /// Shards found missing or damaged.
    pub shards_bad: AtomicU64,
    /// Shards written again.
    pub shards_repaired: AtomicU64,
    /// Reads that failed for want of shards.
    pub stripes_lost: AtomicU64,
    /// Shards moved to spread a stripe evenly.
    pub shards_moved: AtomicU64,
    /// Bytes of shards that rebuilding has read and written.
    pub rebuild_bytes: AtomicU64,
    /// Shards that scrub has read.
    pub scrub_shards: AtomicU64,
    /// Bytes of them that were intact.
    pub scrub_bytes: AtomicU64,
    /// Shards that scrub found damaged or missing.
    pub scrub_bad: AtomicU64,
    /// Passes of scrub over all shards.
    pub scrub_passes: AtomicU64,
    /// Extents that compaction has joined or written anew.
    pub compact_extents: AtomicU64,
    /// Bytes that it has read and written.
    pub compact_bytes: AtomicU64,
    /// Tries that a change of the file came before.
    pub compact_lost: AtomicU64,
    /// Tries that failed because bytes are lost, or pinned to memory that is full.
    pub compact_failed: AtomicU64,
    /// Passes over all extents.
    pub compact_passes: AtomicU64,
    /// Bytes of shards read from memory.
    pub bytes_read_ram: AtomicU64,
    /// Bytes of shards read from disk.
    pub bytes_read_disk: AtomicU64,
    /// Bytes of shards moved from memory to disk to make room.
    pub spilled_bytes: AtomicU64,
    /// Bytes of shards moved back to memory.
    pub recalled_bytes: AtomicU64,
    /// Copies made of sealed files, to be read in place.
    pub copies_made: AtomicU64,
    /// Tries to put a stripe right that failed.
    pub rebuilds_failed: AtomicU64,
    /// Places whose disks stopped answering.
    pub place_silences: AtomicU64,
}

impl Counters {
    /// Names and values, in the order of the metrics file.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 26] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("kos_stripes_written_total", get(&self.stripes_written)),
            ("kos_bytes_written_total", get(&self.bytes_written)),
            ("kos_bytes_saved_total", get(&self.bytes_saved)),
            ("kos_bytes_read_total", get(&self.bytes_read)),
            ("kos_ram_bytes_read_total", get(&self.bytes_read_ram)),
            ("kos_disk_bytes_read_total", get(&self.bytes_read_disk)),
            ("kos_spilled_bytes_total", get(&self.spilled_bytes)),
            ("kos_recalled_bytes_total", get(&self.recalled_bytes)),
            ("kos_copies_made_total", get(&self.copies_made)),
            ("kos_stripes_freed_total", get(&self.stripes_freed)),
            ("kos_shards_bad_total", get(&self.shards_bad)),
            ("kos_shards_repaired_total", get(&self.shards_repaired)),
            ("kos_stripes_lost_total", get(&self.stripes_lost)),
            ("kos_shards_moved_total", get(&self.shards_moved)),
            ("kos_scrub_shards_total", get(&self.scrub_shards)),
            ("kos_scrub_bytes_total", get(&self.scrub_bytes)),
            ("kos_scrub_bad_total", get(&self.scrub_bad)),
            ("kos_scrub_passes_total", get(&self.scrub_passes)),
            ("kos_compact_extents_total", get(&self.compact_extents)),
            ("kos_compact_bytes_total", get(&self.compact_bytes)),
            ("kos_compact_lost_total", get(&self.compact_lost)),
            ("kos_compact_failed_total", get(&self.compact_failed)),
            ("kos_compact_passes_total", get(&self.compact_passes)),
            ("kos_rebuild_bytes_total", get(&self.rebuild_bytes)),
            ("kos_rebuilds_failed_total", get(&self.rebuilds_failed)),
            ("kos_place_silences_total", get(&self.place_silences)),
        ]
    }
}

/// `kos status --json`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// `ok`, `degraded` or `down`.
    pub health: &'static str,
    /// Mounts of this node.
    pub mounts: Vec<MountStatus>,
    /// What mount(8) shows as the source.
    pub mount_source: String,
    /// Nodes of the cluster.
    pub nodes: Vec<NodeStatus>,
    /// How many are up.
    pub nodes_up: usize,
    /// The leading node.
    pub leader: u64,
    /// Its process.
    pub leader_pid: u32,
    /// Stripes with fewer good shards than their geometry says, as far as is known.
    pub under_replicated_stripes: u64,
    /// Stripes with more shards on one place than an even spread puts there.
    pub under_spread_stripes: u64,
}

/// One mount.
#[derive(Debug, Serialize)]
pub struct MountStatus {
    /// Its directory.
    pub dir: String,
    /// Its source.
    pub source: String,
    /// The process that serves it.
    pub pid: u32,
    /// `mounted`.
    pub state: &'static str,
}

/// One node.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: u64,
    /// Where it listens; empty without a network.
    pub addr: String,
    /// Its process.
    pub pid: u32,
    /// `up`, `suspect`, `down` or `draining`.
    pub state: &'static str,
}
