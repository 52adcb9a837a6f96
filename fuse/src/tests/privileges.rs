//! setuid, setgid and capabilities go with a change of contents or owner, as on a local filesystem.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::fs::{FallocateFlags, XattrFlags, copy_file_range, fallocate, getxattr, setxattr};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{Live, put};

const NOBODY: u32 = 65534;

/// Run as a user without privilege; only this thread changes its user.
fn as_nobody(act: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
                #[expect(unsafe_code, reason = "std and rustix change a whole process or nothing")]
                // SAFETY: the call takes three numbers and touches no memory.
                let done = unsafe { libc::syscall(call, NOBODY, NOBODY, NOBODY) };
                assert_eq!(done, 0, "this test needs root");
            }
            act();
        });
    });
}

/// A file of root's that all may write, execute and run as root.
fn setuid(live: &Live, name: &str) -> (File, impl Fn() -> u32) {
    let path = live.path(name);
    put(&path, &[1; 10_000]);
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("chmod");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    (file, move || fs::metadata(&path).expect("stat").mode() & 0o7777)
}

type Change = fn(&File, &Path);

/// All that change bytes.
const CHANGES: [(&str, Change); 8] = [
    ("write", |file, _| file.write_all_at(b"new", 5).expect("write")),
    ("append", |_, path| {
        OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(b"new"))
            .expect("append");
    }),
    ("ftruncate", |file, _| file.set_len(5).expect("truncate")),
    ("O_TRUNC", |_, path| drop(File::create(path).expect("open"))),
    ("fallocate", |file, _| fallocate(file, FallocateFlags::empty(), 0, 20_000).expect("fallocate")),
    ("punch", |file, _| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, punch, 0, 5000).expect("punch");
    }),
    ("zero range", |file, _| fallocate(file, FallocateFlags::ZERO_RANGE, 0, 5000).expect("zero range")),
    ("copy_file_range", |file, _| {
        let copied = copy_file_range(file, Some(&mut 0), file, Some(&mut 20_000), 5000).expect("copy");
        assert_eq!(copied, 5000);
    }),
];

#[test]
fn a_change_by_others_clears_setuid_and_setgid_and_one_by_root_does_not() {
    let live = Live::new();
    for (name, change) in CHANGES {
        let (file, mode) = setuid(&live, name);
        change(&file, &live.path(name));
        assert_eq!(mode(), 0o6777, "{name} by root");
        as_nobody(|| change(&file, &live.path(name)));
        assert_eq!(mode(), 0o777, "{name} by others");
    }
    let (file, mode) = setuid(&live, "chown");
    chown(live.path("chown"), Some(NOBODY), None).expect("chown");
    assert_eq!(mode(), 0o777, "chown by root too");
    // setgid of a file that no group executes is no privilege.
    file.set_permissions(Permissions::from_mode(0o2767)).expect("chmod");
    as_nobody(|| file.write_all_at(b"new", 5).expect("write"));
    assert_eq!(mode(), 0o2767);
}

#[test]
fn any_change_takes_capabilities_away() {
    let live = Live::new();
    // Revision 2, effective, all of the first 32.
    let capability = [&[1, 0, 0, 2], &[255; 4][..], &[0; 12]].concat();
    let name = "security.capability";
    let chown: (&str, Change) = ("chown", |_, path| chown(path, Some(NOBODY), None).expect("chown"));
    for (what, change) in CHANGES.into_iter().chain([chown]) {
        let path = live.path(what);
        put(&path, &[1; 10_000]);
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        for _ in 0..2 {
            setxattr(&path, name, &capability, XattrFlags::empty()).expect("setxattr");
            assert_eq!(getxattr(&path, name, &mut [0; 64]), Ok(capability.len()));
            change(&file, &path);
            assert_eq!(getxattr(&path, name, &mut [0; 64]), Err(rustix::io::Errno::NODATA), "{what}");
        }
    }
}

/// Also where a write goes past the page cache, in which the kernel takes none away.
#[test]
fn what_is_streamed_takes_capabilities_away() {
    let live = Live::new();
    let (path, name) = (live.path("file"), "security.capability");
    let capability = [&[1, 0, 0, 2], &[255; 4][..], &[0; 12]].concat();
    let file = File::create(&path).expect("create");
    for _ in 0..3 {
        file.write_all_at(b"program", 0).expect("write");
        setxattr(&path, name, &capability, XattrFlags::empty()).expect("setxattr");
        file.write_all_at(b"another", 0).expect("write");
        assert_eq!(getxattr(&path, name, &mut [0; 64]), Err(rustix::io::Errno::NODATA));
    }
}

/// The kernel keeps modes for a second, but not this one.
#[test]
fn a_changed_program_runs_as_its_caller_at_once() {
    let live = Live::new();
    let path = live.path("id");
    fs::copy("/usr/bin/id", &path).expect("copy");
    let run = || {
        loop {
            match Command::new(&path).arg("-u").uid(NOBODY).gid(NOBODY).output() {
                Ok(out) => return String::from_utf8(out.stdout).expect("a number").trim().to_owned(),
                // Another test's new process has our descriptors until it executes its program.
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
                Err(e) => panic!("{e}"),
            }
        }
    };
    for _ in 0..5 {
        fs::set_permissions(&path, Permissions::from_mode(0o4777)).expect("chmod");
        assert_eq!(run(), "0", "it is setuid");
        as_nobody(|| {
            let mut file = OpenOptions::new().append(true).open(&path).expect("open");
            file.write_all(b"changed").expect("append");
        });
        assert_eq!(run(), NOBODY.to_string(), "and not any more");
    }
}

/// Root without CAP_FSETID is as others are: the kernel says so for each write and truncation.
#[test]
fn the_kernel_says_whose_changes_clear_setuid() {
    let live = Live::by("dev");
    let changes = CHANGES.into_iter().filter(|(name, _)| ["write", "ftruncate", "O_TRUNC"].contains(name));
    for (name, change) in changes {
        let (file, mode) = setuid(&live, name);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut own = capabilities(None).expect("capabilities");
                own.effective.remove(CapabilitySet::FSETID);
                set_capabilities(None, own).expect("fewer capabilities");
                change(&file, &live.path(name));
            });
        });
        assert_eq!(mode(), 0o777, "{name}");
    }
}
