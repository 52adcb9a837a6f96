//! Scrub finds damage that no read finds, and it is repaired.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kos_code::shard::{self, HEADER_BYTES};
use kos_tests::{Daemon, wait_for};

const BLOCK: usize = 4096;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("segment")
}

/// Change a byte of every shard of a place and make all checksums right again, but for the hash.
/// Answers how many shards that were.
fn forge(daemon: &Daemon, number: usize) -> usize {
    let mut forged = 0;
    for path in daemon.segments_of(number) {
        let mut bytes = fs::read(&path).expect("segment");
        for at in (0..bytes.len()).step_by(BLOCK) {
            let Ok(mut header) = shard::decode_header(&bytes[at..]) else { continue };
            let len = header.payload_len as usize;
            bytes[at + HEADER_BYTES + len / 2] ^= 1;
            let payload = &bytes[at + HEADER_BYTES..][..len];
            let mut table: Vec<u8> =
                shard::crc_table(payload).into_iter().flat_map(u32::to_le_bytes).collect();
            table.resize(shard::table_len(len), 0);
            bytes[at + HEADER_BYTES + len..][..table.len()].copy_from_slice(&table);
            header.table_crc = crc(&table);
            bytes[at..at + HEADER_BYTES].copy_from_slice(&shard::encode_header(&header));
            forged += 1;
        }
        open(&path).write_all_at(&bytes, 0).expect("segment");
    }
    forged
}

/// CRC32C of whole blocks.
fn crc(table: &[u8]) -> u32 {
    assert_eq!(table.len(), BLOCK);
    shard::crc_table(table)[0]
}

/// Ask for a pass and wait until it is over and what it found is repaired.
fn scrub(daemon: &Daemon) {
    let passes = daemon.metric("kos_scrub_passes_total");
    daemon.ctl("scrub");
    wait_for("the pass", || daemon.metric("kos_scrub_passes_total") > passes);
    wait_for("the repair", || daemon.metric("kos_stripes_under_replicated") == 0);
}

#[test]
fn a_shard_with_forged_checksums_is_found_by_its_hash() {
    let (mut daemon, data) = Daemon::with_file(1);
    let forged = forge(&daemon, 0);
    assert!(forged >= 2, "{forged}");
    daemon.spawn();
    assert!(fs::read(daemon.mem().join("file")).expect("read") != data, "the checksums do not show it");
    assert_eq!(daemon.metric("kos_shards_bad_total"), 0);
    scrub(&daemon);
    assert_eq!(daemon.metric("kos_scrub_bad_total"), forged as u64, "{}", daemon.log());
    assert_eq!(daemon.metric("kos_shards_repaired_total"), forged as u64);
    assert_eq!(daemon.metric("kos_scrub_shards_total"), 3 * 6);
    assert!(daemon.metric("kos_scrub_bytes_total") > data.len() as u64);
    daemon.stop();
    daemon.spawn();
    assert!(fs::read(daemon.mem().join("file")).expect("read") == data, "repaired");
    scrub(&daemon);
    assert_eq!(daemon.metric("kos_scrub_bad_total"), 0, "nothing is left");
    daemon.stop();
}

#[test]
fn damage_that_nobody_read_is_repaired_before_more_is_lost() {
    let (mut daemon, data) = Daemon::with_file(2);
    for path in [daemon.segments_of(1), daemon.segments_of(4)].concat() {
        let file = open(&path);
        for at in (0..file.metadata().expect("segment").len()).step_by(64 << 10) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("segment");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("segment");
        }
    }
    daemon.spawn();
    scrub(&daemon);
    assert!(daemon.metric("kos_scrub_bad_total") >= 4, "{}", daemon.log());
    daemon.stop();
    for path in [daemon.segments_of(0), daemon.segments_of(3)].concat() {
        fs::remove_file(path).expect("delete");
    }
    daemon.spawn();
    assert!(fs::read(daemon.mem().join("file")).expect("read") == data, "two more may be lost");
    daemon.stop();
}
