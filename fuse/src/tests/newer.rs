//! What only the session that speaks the protocol itself can: answers that fuser does not know.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use rustix::fs::{SeekFrom, copy_file_range, seek};

use super::live::Live;

#[test]
fn an_inode_knows_when_it_was_made() {
    let mut live = Live::by("dev");
    let before = SystemTime::now();
    fs::write(live.path("file"), b"bytes").expect("write");
    fs::create_dir(live.path("dir")).expect("mkdir");
    // Its other times move on.
    let file = File::options().write(true).open(live.path("file")).expect("open");
    let later = before + Duration::from_secs(1000);
    file.set_times(fs::FileTimes::new().set_modified(later).set_accessed(later)).expect("set");
    for name in ["file", "dir"] {
        let made = fs::metadata(live.path(name)).expect("statx").created().expect("it is told");
        // The kernel's clock of files is a tick behind.
        assert!(made > before - Duration::from_secs(1) && made < later, "{name}: {made:?}");
    }
    drop(file);
    live.remount();
    assert!(fs::metadata(live.path("file")).expect("statx").created().expect("still") < later);
    assert!(live.ended());
}

/// A copy is a clone of extents, of any length.
#[test]
fn one_call_copies_more_than_four_gibibytes() {
    const LEN: u64 = 6 << 30;
    let mut live = Live::by("dev");
    let source = OpenOptions::new().read(true).write(true).create_new(true).open(live.path("source"));
    let source = source.expect("create");
    let target = File::create_new(live.path("target")).expect("create");
    for at in [0, 5 << 30, LEN - 5] {
        source.write_all_at(b"bytes", at).expect("write");
    }
    let mut copied = 0;
    let mut calls = 0;
    while copied < LEN {
        let (mut from, mut to) = (copied, copied);
        let len = copy_file_range(&source, Some(&mut from), &target, Some(&mut to), (LEN - copied) as usize);
        let len = len.expect("copy") as u64;
        assert!(len > 0);
        (copied, calls) = (copied + len, calls + 1);
    }
    // Linux itself copies 2 GiB less a page at a call.
    assert!(calls <= 4, "{calls} calls");
    let target = File::open(live.path("target")).expect("open");
    assert_eq!(target.metadata().expect("stat").len(), LEN);
    for at in [0, 5 << 30, LEN - 5] {
        let mut bytes = [0; 5];
        target.read_exact_at(&mut bytes, at).expect("read");
        assert_eq!(&bytes, b"bytes", "{at}");
    }
    assert!(seek(&target, SeekFrom::Hole(0)).expect("holes") < 5 << 30);
    drop((source, target));
    assert!(live.ended());
}
