//! Full, missing, broken and foreign places.

use std::fs::File;

use kos_types::{Error, Kind, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::*;

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|e: Error| e.kind())
}

/// A small tmpfs.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// None, with a line that says so, without the right to mount.
    fn new(size: &str) -> Option<Self> {
        let at = TempDir::new().expect("temporary directory");
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: mounting needs root");
            return None;
        }
        let options = std::ffi::CString::new(format!("size={size}")).expect("no NUL");
        mount("tmpfs", at.path(), "tmpfs", MountFlags::empty(), &*options).expect("mounts");
        Some(Self(at))
    }

    fn set_read_only(&self) {
        mount_remount(self.0.path(), MountFlags::RDONLY, c"").expect("remounts");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_takes_no_more_and_loses_nothing() {
    let Some(disk) = Tmpfs::new("256k") else { return };
    let dirs = [disk.0.path().to_path_buf()];
    let store = Store::open_sized(&dirs, [], Medium::Disk, 1 << 20).expect("opens");
    let mut live = Vec::new();
    let full = loop {
        match store.append(0, &[&bytes(live.len() as u64, 4)]) {
            Ok(location) => live.push((0, location)),
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), Kind::NoSpace);
    assert!(live.len() > 10);
    // 64 pages, one for the lock: the append that failed had found three of its four.
    let free = store.usage().expect("usage").bytes_free;
    assert_eq!(free, 3 * BLOCK as u64, "what it wrote is given back");
    for _ in 0..10 {
        assert_eq!(kind(store.append(0, &[&bytes(7, 8)])), Some(Kind::NoSpace));
    }
    assert_eq!(store.usage().expect("usage").bytes_free, free, "failed appends leak no blocks");
    let total: u64 = live.iter().map(|(_, l)| l.len).sum();
    let segments = store.segments(0).expect("lists");
    assert_eq!((segments[0].bytes_live, segments[0].bytes_total), (total, total), "nor ranges");
    assert!(!store.poisoned(0));
    (0..).zip(&live).for_each(|(seed, &(_, location))| holds(&store, 0, location, seed));
    // What is freed can be used at once.
    store.free(0, live[0].1).expect("frees");
    let again = put(&store, 0, 99, 4);
    holds(&store, 0, again, 99);
    assert_eq!(store.sync(0), Ok(()));
}

#[test]
fn a_read_only_disk_is_still_read() {
    let Some(disk) = Tmpfs::new("256k") else { return };
    let dirs = [disk.0.path().join("place")];
    let store = Store::open_sized(&dirs, [], Medium::Disk, SMALL).expect("opens");
    let location = put(&store, 0, 1, 1);
    drop(store);
    disk.set_read_only();
    let store = Store::open_sized(&dirs, [(0, location)], Medium::Disk, SMALL).expect("opens");
    holds(&store, 0, location, 1);
    assert_eq!(kind(store.append(0, &[&[0; BLOCK]])), Some(Kind::Io));
}

#[test]
fn a_place_that_does_not_work_does_not_stop_the_others() {
    let mut dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let live = [(0, put(&store, 0, 1, 1)), (1, put(&store, 1, 2, 1))];
    drop(store);
    let file = dirs.dir(0).join("a file");
    fs::write(&file, "").expect("writes");
    dirs.dirs[1] = file.join("place");
    let store = dirs.open(&live);
    let failed: Vec<bool> = store.places().iter().map(|p| p.failed.is_some()).collect();
    assert_eq!(failed, [false, true]);
    holds(&store, 0, live[0].1, 1);
    assert_eq!(kind(store.append(1, &[&[0; BLOCK]])), Some(Kind::Io));
    assert_eq!(kind(store.read(1, live[1].1, 0, &mut [0; 1])), Some(Kind::Io));
    assert_eq!(kind(store.sync(1)), Some(Kind::Io));
    assert_eq!(kind(store.segments(1)), Some(Kind::Io));
    assert_eq!(store.free(1, live[1].1), Ok(()));
    assert!(!store.poisoned(1) && store.usage().is_ok());
}

#[test]
fn a_disk_that_is_not_mounted_is_not_written_below() {
    let dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let live = [(0, put(&store, 0, 1, 1)), (1, put(&store, 1, 2, 1))];
    drop(store);
    fs::remove_dir_all(dirs.dir(1)).expect("removes");
    let failed = |store: &Store| store.places()[1].failed.clone();
    assert!(failed(&dirs.open(&live)).is_some());
    assert!(!dirs.dir(1).exists());
    fs::create_dir(dirs.dir(1)).expect("creates");
    let why = failed(&dirs.open(&live)).expect("failed").to_string();
    assert!(why.contains("mounted") && why.contains("touch"), "{why}");
    assert!(!dirs.dir(1).join("lock").exists());
    // As it says.
    File::create(dirs.dir(1).join("lock")).expect("creates");
    let store = dirs.open(&live);
    assert_eq!(failed(&store), None);
    assert_eq!(kind(store.read(1, live[1].1, 0, &mut [0; 1])), Some(Kind::NotFound));
    put(&store, 1, 3, 1);
}

#[test]
fn one_store_at_a_time() {
    let dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let second = Store::open(&dirs.dirs[1..], [], Medium::Disk).expect_err("in use");
    assert_eq!(second.kind(), Kind::Busy);
    assert!(second.to_string().contains("kos down"), "{second}");
    drop(store);
    assert!(Store::open(&dirs.dirs, [], Medium::Disk).is_ok());
    let twice = [dirs.dirs[0].clone(), dirs.dirs[0].clone()];
    assert_eq!(kind(Store::open(&twice, [], Medium::Disk)), Some(Kind::Busy));
}

#[test]
fn directories_in_another_order_are_refused_before_anything_is_deleted() {
    let dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let live = [(0, put(&store, 0, 1, 1)), (1, put(&store, 1, 2, 1))];
    drop(store);
    let swapped = [dirs.dirs[1].clone(), dirs.dirs[0].clone()];
    assert_eq!(kind(Store::open(&swapped, live, Medium::Disk)), Some(Kind::Invalid));
    assert_eq!(kind(Store::open(&swapped[1..], live, Medium::Disk)), Some(Kind::Invalid), "one was left out");
    let store = dirs.open(&live);
    (1..).zip(live).for_each(|(seed, (place, location))| holds(&store, place, location, seed));
}

#[test]
fn the_number_of_places_is_bounded() {
    for n in [0, 33] {
        assert_eq!(kind(Store::open(&Dirs::new(n).dirs, [], Medium::Disk)), Some(Kind::Invalid));
    }
    let dirs = Dirs::new(32);
    assert_eq!(dirs.open(&[]).places().len(), 32);
}

#[test]
fn after_a_failed_sync_a_place_takes_nothing_until_reopened() {
    let dirs = Dirs::new(2);
    let store = dirs.open(&[]);
    let kept = put(&store, 0, 1, 1);
    store.sync(0).expect("syncs");
    // Takes every write, refuses fdatasync.
    let null = File::options().write(true).open("/dev/null").expect("opens");
    store.log(0).expect("works").divert(null);
    let lost = put(&store, 0, 2, 1);
    assert!(!store.poisoned(0));
    for _ in 0..2 {
        assert_eq!(kind(store.sync(0)), Some(Kind::Io));
        assert_eq!(kind(store.append(0, &[&[0; BLOCK]])), Some(Kind::Io));
    }
    assert!(store.poisoned(0) && !store.poisoned(1));
    assert!(store.places()[0].failed.is_some() && store.places()[1].failed.is_none());
    holds(&store, 0, kept, 1);
    put(&store, 1, 3, 1);
    assert_eq!((store.sync(1), store.free(0, lost)), (Ok(()), Ok(())));
    drop(store);
    let store = dirs.open(&[(0, kept)]);
    holds(&store, 0, kept, 1);
    put(&store, 0, 4, 1);
    assert_eq!(store.sync(0), Ok(()));
}

#[test]
fn a_caller_who_never_syncs_does_not_use_up_descriptors() {
    let dirs = Dirs::new(1);
    let store = dirs.open(&[]);
    let written = |dir: &Path| {
        let fds = fs::read_dir("/proc/self/fd").expect("lists");
        fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).filter(|path| path.starts_with(dir)).count()
    };
    for seed in 0..60 {
        put(&store, 0, seed, 8);
        assert!(written(dirs.dir(0)) < 16);
    }
}
