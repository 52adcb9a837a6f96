//! A fabric that is slow or refuses: requests end with an error that says so, and no byte is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{Kind, ROOT, Result, SetAttr, SetSize};

use super::{Model, Rng, create, read, unmounted};
use crate::fs::Fs;

/// A filesystem whose requests wait for this long.
fn waits(millis: u64) -> (Arc<Model>, Fs<Model>) {
    let model = Arc::<Model>::default();
    (Arc::clone(&model), Fs::with_patience(model, Vec::new(), super::arena(), Duration::from_millis(millis)))
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("refused").kind()
}

#[test]
fn a_flush_that_takes_too_long_ends_and_is_done_later() {
    let (model, fs) = waits(2000);
    let file = create(&fs, "a");
    // More stripes than are written at once.
    let bytes = Rng::seeded(1).bytes(5 * STRIPE_BYTES_MAX);
    fs.write(file, Some(0), &bytes, false).expect("write");
    let (handle, _) =
        fs.open(file, (libc::O_RDWR, kos_types::Consistency::Strong), &crate::seal::no_copy).expect("open");
    model.slow.store(1100, Ordering::Relaxed);
    assert_eq!(kind(fs.fsync(file, handle)), Kind::TimedOut);
    fs.closing(file, handle).expect("it was told");
    assert!(read(&fs, file, 0, bytes.len()).expect("read") == bytes);
    model.slow.store(0, Ordering::Relaxed);
    fs.fsync(file, handle).expect("fsync");
    assert!(read(&fs, file, 0, bytes.len()).expect("read") == bytes);
    assert_eq!(model.reserved.load(Ordering::Relaxed), 0);
}

#[test]
fn nobody_waits_for_the_flush_of_another_for_ever() {
    let (model, fs) = waits(1000);
    let file = create(&fs, "a");
    fs.write(file, Some(0), b"bytes", false).expect("write");
    model.slow.store(60_000, Ordering::Relaxed);
    thread::scope(|scope| {
        let slow = scope.spawn(|| fs.files.flush(file));
        // Until it writes its stripe, and has the file's turn for as long as that takes.
        while model.waiting.load(Ordering::Relaxed) == 0 {
            assert!(!slow.is_finished(), "it writes a stripe");
            thread::yield_now();
        }
        let set = SetAttr { size: Some(SetSize { size: 1 }), ..SetAttr::default() };
        assert_eq!(kind(fs.set_attr(file, set)), Kind::TimedOut);
        assert_eq!(kind(fs.allocate(file, 0, 1, crate::fs::Allocate::Punch, 0)), Kind::TimedOut);
        assert_eq!(kind(fs.files.flush(file)), Kind::TimedOut);
        assert_eq!(read(&fs, file, 0, 9).expect("its bytes are in memory"), b"bytes");
        assert!(!slow.is_finished(), "all of this was while it was flushed");
        // Nothing may come back of a file that goes meanwhile.
        fs.unlink((ROOT, b"a")).expect("unlink");
        fs.forget(file, 1);
        fs.files.reap();
        model.slow.store(0, Ordering::Relaxed);
        assert!(slow.join().expect("joins").is_err(), "the file is gone");
    });
    fs.flush_all().expect("nothing is left to flush");
    assert_eq!((model.orphans().len(), model.reserved.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_read_of_many_slow_stripes_ends() {
    let (model, fs) = waits(1000);
    let file = create(&fs, "a");
    for at in 0..20 {
        fs.write(file, Some(at * 5000), &[1; 4000], false).expect("write");
        fs.files.flush(file).expect("flush");
    }
    model.slow.store(80, Ordering::Relaxed);
    assert_eq!(kind(read(&fs, file, 0, 100_000)), Kind::TimedOut);
    model.slow.store(0, Ordering::Relaxed);
    assert_eq!(read(&fs, file, 0, 100_000).expect("read").len(), 99_000);
}

#[test]
fn a_read_that_is_slower_than_flushes_comes_to_its_end() {
    let (model, fs) = waits(60_000);
    let file = create(&fs, "a");
    // Of two stripes, each of which takes as long as a flush.
    for at in [0, 5000] {
        fs.write(file, Some(at), &[1; 5000], false).expect("write");
        fs.files.flush(file).expect("flush");
    }
    model.slow.store(5, Ordering::Relaxed);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                fs.write(file, Some(20_000), &[2; 100], false).expect("write");
                fs.files.flush(file).expect("flush");
            }
        });
        let read: Vec<_> = (0..20).map(|_| read(&fs, file, 0, 10_000)).collect();
        ended.store(true, Ordering::SeqCst);
        flusher.join().expect("no panic");
        read.into_iter().for_each(|read| assert!(read.expect("it ends") == [1; 10_000]));
    });
}

/// Programs that try a failed write again do not fill the memory.
#[test]
fn a_write_that_fails_has_buffered_nothing() {
    // Enough for all of it when nothing is slow.
    let (model, fs) = waits(2000);
    let file = create(&fs, "a");
    let part = Rng::seeded(2).bytes(1 << 20);
    let (mut written, mut failed) = (0, 0);
    while failed < 2 {
        match fs.write(file, Some(written), &part, false) {
            Ok(_) => written += part.len() as u64,
            Err(e) => {
                assert_eq!(e.kind(), Kind::TimedOut);
                failed += 1;
            }
        }
        model.slow.store(1100, Ordering::Relaxed);
        assert!(written < 100 << 20, "writers are held back");
    }
    assert_eq!(model.reserved.load(Ordering::Relaxed), written.cast_signed());
    model.slow.store(0, Ordering::Relaxed);
    fs.flush_all().expect("flush");
    assert_eq!(fs.attr(file).expect("attributes").size, written);
    assert!(read(&fs, file, written - part.len() as u64, part.len()).expect("read") == part);
}

/// Files of one flush share a stripe, and the first commit brings it in.
#[test]
fn a_refused_commit_fails_its_own_file_only() {
    let (model, fs) = unmounted();
    let files = ["a", "b", "c"].map(|name| create(&fs, name));
    for file in files {
        fs.write(file, Some(0), &file.0.to_le_bytes().repeat(1000), false).expect("write");
    }
    let handles = files.map(|file| {
        fs.open(file, (libc::O_RDWR, kos_types::Consistency::Strong), &crate::seal::no_copy).expect("open").0
    });
    model.refused.store(files[0].0, Ordering::Relaxed);
    assert_eq!(kind(fs.flush_all()), Kind::QuotaExceeded);
    assert_eq!(kind(fs.closing(files[0], handles[0])), Kind::QuotaExceeded);
    assert_eq!(kind(fs.closing(files[0], handles[0])), Kind::QuotaExceeded, "a close does not take it");
    fs.closing(files[1], handles[1]).expect("not its error");
    fs.closing(files[2], handles[2]).expect("not its error");
    model.refused.store(0, Ordering::Relaxed);
    fs.flush_all().expect("flush");
    assert_eq!(kind(fs.fsync(files[0], handles[0])), Kind::QuotaExceeded);
    fs.closing(files[0], handles[0]).expect("told");
    fs.fsync(files[0], handles[0]).expect("told once");
    for file in files {
        assert_eq!(read(&fs, file, 0, 8).expect("read"), file.0.to_le_bytes());
    }
}
