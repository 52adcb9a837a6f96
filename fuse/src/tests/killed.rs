//! A mount that is killed, and the next one on its memory: what write(2) has answered is there.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{Ino, Kind, ROOT, SetAttr, SetSize, Time, TimeChange};

use super::{Model, Rng, create, unmounted};
use crate::arena::{Arena, Buf, Buffers, Owner, kill};
use crate::file::{Files, PATIENCE};

fn files(model: &Arc<Model>, arena: Arc<Arena>) -> Files<Model> {
    Files::new(Arc::clone(model), PATIENCE, Buffers::new(arena))
}

/// The next process, on the memory of one that is killed now.
fn restart(model: &Arc<Model>, killed: Files<Model>, memory: &OwnedFd) -> Files<Model> {
    kill::after(0, || drop(killed));
    files(model, Arena::adopt(memory.try_clone().expect("clone")).expect("adopt"))
}

fn first(model: &Arc<Model>) -> (Files<Model>, OwnedFd) {
    let arena = Arena::new().expect("arena");
    let memory = arena.memory().try_clone_to_owned().expect("clone");
    (files(model, arena), memory)
}

fn all(files: &Files<Model>, ino: Ino) -> Vec<u8> {
    let mut out = vec![0xa5; 4 * STRIPE_BYTES_MAX];
    let len = files.read(ino, 0, &mut out).expect("read");
    out.truncate(len);
    out
}

#[test]
fn the_next_process_has_the_bytes_sizes_and_times() {
    let (model, fs) = unmounted();
    let mut rng = Rng::seeded(1);
    let (before, memory) = first(&model);
    let inos = ["a", "b", "c", "d"].map(|name| create(&fs, name));
    let lens = [3, 100_000, 2 * STRIPE_BYTES_MAX + 77, 5000];
    for (ino, len) in inos.into_iter().zip(lens) {
        for off in [0, len, len / 2] {
            before.write(ino, Some(off as u64), &rng.bytes(len)).expect("write");
        }
    }
    // One is committed in part, one is gone.
    before.flush(inos[1]).expect("flush");
    before.write(inos[1], None, b"more").expect("append");
    fs.unlink((ROOT, b"d")).expect("unlink");
    fs.forget(inos[3], 1);
    fs.files.reap();
    let kept = &inos[..3];
    let bytes: Vec<_> = kept.iter().map(|&ino| all(&before, ino)).collect();
    let attr = |files: &Files<Model>, ino| {
        let attr = files.node(ino).attr(&*model).expect("attr");
        (attr.size, attr.mtime)
    };
    let attrs: Vec<_> = kept.iter().map(|&ino| attr(&before, ino)).collect();

    let set_aside = model.reserved.load(Ordering::Relaxed);
    let after = restart(&model, before, &memory);
    let recovered = after.recover();
    assert_eq!(recovered, 3 * 2 * lens[0] / 3 + 4 + 2 * lens[2], "what was not committed");
    assert_eq!(after.recover(), 0, "once");
    for round in ["buffered", "flushed"] {
        for (nth, &ino) in kept.iter().enumerate() {
            assert!(all(&after, ino) == bytes[nth], "{nth} {round}");
            assert_eq!(attr(&after, ino), attrs[nth], "{nth} {round}");
        }
        after.flush_all().expect("flush");
    }
    assert_eq!(model.reserved.load(Ordering::Relaxed), set_aside, "what was set aside again is given back");
}

#[test]
fn what_was_changed_behind_a_write_stays_so() {
    let (model, fs) = unmounted();
    let (before, memory) = first(&model);
    let [timed, punched, cut] = ["timed", "punched", "cut"].map(|name| create(&fs, name));
    for ino in [timed, punched, cut] {
        before.write(ino, Some(0), &[1; 10_000]).expect("write");
    }
    let long_ago = Time { secs: 1000, nanos: 5 };
    before
        .set_attr(timed, SetAttr { mtime: Some(TimeChange::Set(long_ago)), ..SetAttr::default() })
        .expect("utimens");
    // The size was in the buffer alone.
    before.punch(punched, 6000, 4000, None).expect("punch");
    let size = Some(SetSize { size: 50 });
    before.set_attr(cut, SetAttr { size, ..SetAttr::default() }).expect("truncate");
    let after = restart(&model, before, &memory);
    after.recover();
    let attr = |ino| after.node(ino).attr(&*model).expect("attr");
    assert_eq!(attr(timed).mtime, long_ago);
    assert_eq!((attr(punched).size, attr(cut).size), (10_000, 50));
    let found = all(&after, punched);
    assert!(found[..6000] == [1; 6000] && found[6000..] == [0; 4000]);
    assert_eq!(all(&after, cut), [1; 50]);
    after.flush_all().expect("flush");
    assert_eq!(attr(timed).mtime, long_ago);
    assert_eq!((attr(punched).size, attr(cut).size), (10_000, 50));
}

#[test]
fn a_write_that_finds_no_buffer_flushes_others() {
    let (model, fs) = unmounted();
    let arena = Arena::new().expect("arena");
    let buffers = Buffers::new(arena);
    let files = Files::new(Arc::clone(&model), PATIENCE, Arc::clone(&buffers));
    let [one, other] = ["one", "other"].map(|name| create(&fs, name));
    let owner = Owner { buffers, ino: other };
    let mut taken: Vec<_> =
        (0..).map_while(|off| Buf::new(&owner, off, &[1], STRIPE_BYTES_MAX).ok()).collect();
    assert_eq!(files.write(one, Some(0), &[1; 3]).expect_err("full").kind(), Kind::NoSpace);
    assert_eq!(model.reserved.load(Ordering::Relaxed), 0);
    taken.pop();
    files.write(one, Some(0), &vec![2; STRIPE_BYTES_MAX]).expect("write");
    files.write(other, Some(0), &[3; 3]).expect("write");
    assert!(all(&files, one) == vec![2; STRIPE_BYTES_MAX] && all(&files, other) == [3; 3]);
    files.flush_all().expect("flush");
    drop(taken);
}
