//! Real mounts over a handler of the tests, with programs' requests from chosen processors.

mod files;
mod mounted;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use self::files::{Files, Special};
use self::mounted::{DEADLINE, Mounted, offered, on, processors, wait_for};
use super::{Ring, Shape, possible};

const PAYLOAD_BYTES: usize = 1 << 20;
const SHAPE: Shape = Shape { payload_bytes: PAYLOAD_BYTES, depth: 4, entries_max: 512 };

/// Other bytes for other seeds.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 4096 + seed * 7) as u8).collect()
}

#[test]
fn lists_of_processors_are_counted() {
    assert_eq!(possible("0-3\n"), Some(4));
    assert_eq!(possible("0"), Some(1));
    assert_eq!(possible("0,2-3,8-15"), Some(11));
    assert_eq!(possible(""), None);
    assert_eq!(possible("3-1"), None);
}

#[test]
fn what_is_written_is_read() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(SHAPE);
    for processor in processors() {
        let path = mounted.path("f0");
        let run = on(processor, move || {
            let file = File::options().read(true).write(true).open(&path)?;
            for (seed, len) in [(1, 4096), (2, PAYLOAD_BYTES), (3, 100), (4, 3 * PAYLOAD_BYTES / 2)] {
                let data = pattern(seed, len);
                file.write_all_at(&data, 5)?;
                assert_eq!(fs::metadata(&path)?.len(), 5 + len as u64);
                let mut back = vec![0xa5; len];
                file.read_exact_at(&mut back, 5)?;
                assert!(back == data, "{len} bytes from processor {processor}");
                assert_eq!(file.read_at(&mut back, 5 + len as u64)?, 0);
                file.set_len(0)?;
            }
            io::Result::Ok(())
        });
        run.recv_timeout(DEADLINE).expect("in time").expect("reads and writes");
    }
    assert!(mounted.files.by_ring() > 0, "nothing came by the ring");
    assert_eq!(
        fs::metadata(mounted.path("none")).map_err(|e| e.raw_os_error()).err(),
        Some(Some(libc::ENOENT))
    );
    mounted.end();
}

#[test]
fn attributes_have_payloads_both_ways() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(SHAPE);
    let path = mounted.path("f1");
    let run = on(processors()[0], move || {
        // By `owned`, by `fill` beside a payload, and one that is longer than what is kept in a slot.
        for (name, len) in
            [("user.owned", 300), ("user.fill", 300), ("user.owned", 60_000), ("user.fill", 60_000)]
        {
            let value = pattern(len, len);
            rustix::fs::setxattr(&path, name, &value, rustix::fs::XattrFlags::empty())?;
            let mut back = vec![0; 65_536];
            let read = rustix::fs::getxattr(&path, name, &mut back)?;
            assert!(back[..read] == value, "{name}");
            assert_eq!(rustix::fs::getxattr_query(&path, name)?, len);
        }
        assert_eq!(rustix::fs::getxattr(&path, "user.no", &mut back_of(8)), Err(rustix::io::Errno::NODATA));
        io::Result::Ok(())
    });
    run.recv_timeout(DEADLINE).expect("in time").expect("attributes");
    mounted.end();
}

fn back_of(len: usize) -> Vec<u8> {
    vec![0; len]
}

#[test]
fn an_unanswered_request_is_an_error() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(SHAPE);
    for name in ["panics", "drops", "overfills", "panics-filling"] {
        let path = mounted.path(name);
        let run = on(processors()[0], move || fs::read(path).map_err(|e| e.raw_os_error()));
        assert_eq!(run.recv_timeout(DEADLINE).expect("in time"), Err(Some(libc::EIO)), "{name}");
    }
    // The queue goes on.
    let path = mounted.path("f0");
    on(processors()[0], move || fs::write(path, b"on"))
        .recv_timeout(DEADLINE)
        .expect("in time")
        .expect("write");
    mounted.end();
}

/// More requests of one processor wait than its queue began with, and all else goes on.
#[test]
fn kept_requests_do_not_hold_up_others() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(SHAPE);
    let processor = processors()[0];
    for round in 0..2 {
        let waiting = (0..40).map(|i| {
            let path = mounted.path("waits");
            on(processor, move || {
                let file = File::options().read(true).write(true).open(path)?;
                if i % 2 == 0 {
                    let mut back = vec![0; 4096];
                    file.read_exact_at(&mut back, i * 4096).map(|()| back)
                } else {
                    file.write_all_at(&vec![7; 256 << 10], 0).map(|()| Vec::new())
                }
            })
        });
        let waiting: Vec<_> = waiting.collect();
        wait_for("all are kept", || mounted.files.kept() == 40);

        let path = mounted.path("f2");
        let run = on(processor, move || {
            for seed in 0..20 {
                let data = pattern(seed, PAYLOAD_BYTES);
                fs::write(&path, &data)?;
                assert!(fs::read(&path)? == data);
            }
            io::Result::Ok(())
        });
        run.recv_timeout(DEADLINE).expect("in time").expect("others are served");

        assert_eq!(mounted.files.kept(), 40);
        mounted.files.answer_kept();
        for (i, waiting) in waiting.into_iter().enumerate() {
            let read = waiting.recv_timeout(DEADLINE).expect("in time").expect("answered");
            assert!(i % 2 == 1 || read == vec![i as u8; 4096], "read {i}");
        }
        if round == 0 {
            // Memory that the crowd needed is given back meanwhile.
            thread::sleep(Duration::from_millis(1500));
        }
    }
    mounted.end();
}

/// Answers from another thread, as soon as it can, cross the queue on its way to sleep.
#[test]
fn no_answer_is_missed() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(SHAPE);
    let processors = processors();
    let readers = (0..2 * processors.len()).map(|i| {
        let path = mounted.path("later");
        on(processors[i % processors.len()], move || {
            let file = File::open(path)?;
            for at in 0..1000 {
                let mut back = [0; 16];
                file.read_exact_at(&mut back, at * 4096)?;
                assert_eq!(back, [at as u8; 16]);
            }
            io::Result::Ok(())
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.recv_timeout(DEADLINE).expect("in time").expect("reads");
    }
    mounted.end();
}

#[test]
fn an_unmount_ends_kept_requests() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(SHAPE);
    let waiting: Vec<_> = (0..10)
        .map(|i| {
            let path = mounted.path("waits");
            on(processors()[i % processors().len()], move || fs::read(path).map_err(|e| e.raw_os_error()))
        })
        .collect();
    wait_for("all are kept", || mounted.files.kept() == 10);
    let files = Arc::clone(&mounted.files);
    mounted.end();
    for waiting in waiting {
        assert_eq!(waiting.recv_timeout(DEADLINE).expect("in time"), Err(Some(libc::ECONNABORTED)));
    }
    // The queues and their threads are gone, and the memory is not.
    assert_eq!(files.kept(), 10);
    files.answer_kept();
}

/// A queue as large as it may be tells its handler, and where that does not listen, the end comes all the same.
#[test]
fn a_full_queue_says_so_and_ends() {
    if !offered() {
        return;
    }
    let mounted = Mounted::ring(Shape { depth: 2, entries_max: 4, ..SHAPE });
    let read = |name: &str, processor| {
        let path = mounted.path(name);
        on(processor, move || fs::read(path).map_err(|e| e.raw_os_error()))
    };
    let processor = processors()[0];
    let polite: Vec<_> = (0..6).map(|_| read("waits", processor)).collect();
    wait_for("two are kept, and four are refused", || {
        mounted.files.kept() == 2 && mounted.files.refused() == 4
    });
    read("f0", processor).recv_timeout(DEADLINE).expect("in time").expect("another is served");

    let hogs: Vec<_> = (0..6).flat_map(|_| processors()).map(|processor| read("hogs", processor)).collect();
    // Four of each processor, of which the first has two already.
    let kept = processors().len() * 4;
    wait_for("all entries are taken", || mounted.files.kept() == kept);
    mounted.end();
    for waiting in polite.into_iter().chain(hogs) {
        let error = waiting.recv_timeout(DEADLINE).expect("in time").expect_err("no answer");
        // Some had not even opened their file.
        let expected = [libc::EAGAIN, libc::ECONNABORTED, libc::ENOTCONN, libc::ENOENT].map(Some);
        assert!(expected.contains(&error), "{error:?}");
    }
}

#[test]
fn what_the_kernel_refuses_comes_by_the_device() {
    if !offered() {
        return;
    }
    let small = Shape { payload_bytes: 8192, ..SHAPE };
    let mounted = Mounted::new(small, |prepared| prepared);
    let refused = mounted.refused.as_ref().expect("a payload too small");
    assert!(refused.usable, "{refused:?}");
    assert_eq!(refused.error.raw_os_error(), Some(libc::EINVAL));
    served_by_device(mounted);
}

/// All other queues are registered by then.
#[test]
fn a_queue_that_fails_takes_all_back() {
    if !offered() {
        return;
    }
    let mounted = Mounted::new(SHAPE, |mut prepared| {
        let last = prepared.members.last_mut().expect("a processor");
        last.orders = mpsc::channel().0;
        prepared
    });
    let refused = mounted.refused.as_ref().expect("a queue without a thread");
    assert!(refused.usable, "{refused:?}");
    served_by_device(mounted);
}

fn served_by_device(mounted: Mounted) {
    for processor in processors() {
        let path = mounted.path("f0");
        let run = on(processor, move || {
            let data = pattern(1, 100_000);
            fs::write(&path, &data)?;
            fs::read(&path).map(|back| back == data)
        });
        assert!(run.recv_timeout(DEADLINE).expect("in time").expect("reads and writes"));
    }
    assert_eq!(mounted.files.by_ring(), 0);
    mounted.end();
}

#[test]
fn what_is_prepared_may_be_dropped() {
    let files = Arc::new(Files::new());
    drop(Ring::prepare(SHAPE, &files).expect("rings"));
    assert_eq!(Special::of("waits"), Some(Special::Waits));
}
