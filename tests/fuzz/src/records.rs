//! Records of the tables and their keys: what decodes is still the same when encoded and decoded again.

use kos_core::record::{Dentry, ExtentRecord, Inode, Session, SnapshotRecord, State, Stripe};
use kos_core::{MemTables, apply, initialise, keys};
use kos_store::Location;
use kos_types::{Command, Ino, Op, Origin, SessionId, Time};

macro_rules! same_again {
    ($bytes:expr, $decode:expr, $encode:expr) => {
        if let Ok(record) = $decode($bytes) {
            assert_eq!($decode(&$encode(&record)), Ok(record));
        }
    };
}

pub(crate) fn run(data: &[u8]) {
    let Some((&table, bytes)) = data.split_first() else { return };
    match table % 9 {
        0 => same_again!(bytes, State::decode, State::encode),
        1 => same_again!(bytes, |bytes: &[u8]| Inode::decode(Ino(7), bytes), Inode::encode),
        2 => same_again!(bytes, Dentry::decode, Dentry::encode),
        3 => same_again!(bytes, ExtentRecord::decode, ExtentRecord::encode),
        4 => same_again!(bytes, Stripe::decode, Stripe::encode),
        5 => same_again!(bytes, SnapshotRecord::decode, SnapshotRecord::encode),
        6 => same_again!(bytes, Session::decode, Session::encode),
        7 => same_again!(bytes, Location::from_bytes, Location::to_bytes),
        _ => answer(bytes),
    }
    key(bytes);
}

/// A kept answer, found by the command that is repeated.
fn answer(bytes: &[u8]) {
    let mut tables = MemTables::default();
    tables.write(initialise(Time::default()));
    let session = SessionId(1);
    tables.write([(keys::answer(session, 1), Some(bytes.to_vec()))].into());
    let origin = Origin { session, epoch: 1, seq: 1, ..Origin::default() };
    let command = Command { now: Time::default(), origin, op: Op::OpenBatch };
    // Either answer will do; what counts is that there is one.
    drop(apply(&tables, &command));
}

fn key(bytes: &[u8]) {
    let end = keys::end_of(bytes);
    // All that begins with a prefix is below its end; only 0xff… has none.
    assert!(end.is_empty() == bytes.iter().all(|&byte| byte == 0xff));
    let longer = [bytes, &[0xff; 3]].concat();
    assert!(end.is_empty() || (bytes < end.as_slice() && longer < end));
    for at in [0, 1, 9, bytes.len()] {
        let field = keys::field(bytes, at);
        assert!(bytes.get(at..at + 8).is_none_or(|b| b == field.to_be_bytes()));
    }
}
