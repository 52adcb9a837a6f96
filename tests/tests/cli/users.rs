//! A node of a user who is not root, mounted by fusermount3.
//!
//! Each test runs once more in a mount namespace where users may use /dev/fuse, as on a machine that udev has set up, whatever
//! the mode of this one's.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kos_tests::{Rng, binary, is_mounted};
use memmap2::{Mmap, MmapMut};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::place::*;

/// One whom /etc/passwd names: fusermount3 asks.
const USER: u32 = 65534;
const INSIDE: &str = "KOS_TEST_INSIDE";
/// What udev and systemd have done elsewhere.
const SETUP: &str = "mount -t tmpfs none /mnt && mknod /mnt/fuse c 10 229 && chmod 666 /mnt/fuse &&
    mount --bind /mnt/fuse /dev/fuse && mount -t fusectl none /sys/fs/fuse/connections && exec \"$@\"";

/// Whether this is the run in the namespace; starts that one where it is not.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SETUP, "sh"]);
    command.arg(std::env::current_exe().expect("own path")).args(["--exact", test, "--nocapture"]);
    let said = expect(
        {
            command.env(INSIDE, "1");
            command
        },
        0,
    );
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// A place of the user's, and the programs where the user may run them.
fn place() -> Place {
    let place = Place::new();
    let root = place.root.path();
    chown(root, Some(USER), Some(USER)).expect("chown");
    fs::set_permissions(root, Permissions::from_mode(0o755)).expect("chmod");
    let programs = root.join("bin");
    fs::create_dir(&programs).expect("mkdir");
    mount_bind(binary("kos").parent().expect("directory"), &programs).expect("bind");
    place
}

/// `kos` as the user types it.
fn kos(place: &Place, args: &[&str], code: i32) -> String {
    let mut command = Command::new(place.root.path().join("bin/kos"));
    command.uid(USER).gid(USER).current_dir(place.root.path());
    command.args(args).arg("--state").arg(place.state());
    if args[0] == "up" {
        command.arg("--mount").arg(place.mount());
    }
    expect(command, code)
}

/// Do it in a thread that is the user's.
fn as_user<T: Send + 'static>(what: &str, act: impl FnOnce() -> io::Result<T> + Send + 'static) -> T {
    within(what, move || {
        let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        act()
    })
}

fn is_denied<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn a_user_has_a_node_of_their_own() {
    if !inside("users::a_user_has_a_node_of_their_own") {
        return;
    }
    let place = place();
    let mut plain = Command::new(place.root.path().join("bin/kos"));
    plain.uid(USER).gid(USER).current_dir("/").args(["up", "--mount", "/kos-test"]);
    let said = expect(plain, 1);
    assert!(said.contains("sudo") && said.contains("--state DIR --mount DIR"), "{said}");

    let program = Path::new("/usr/bin/fusermount3");
    mount_bind("/dev/null", program).expect("hide it");
    let said = kos(&place, &["up"], 1);
    unmount(program, UnmountFlags::empty()).expect("show it");
    assert!(said.contains("apt install fuse3") && !place.state().exists(), "{said}");

    kos(&place, &["up", "--tier-ram", "64M"], 0);
    let said = kos(&place, &["up"], 0);
    assert!(said.contains("already up"), "{said}");
    kos(&place, &["status"], 0);
    let source = format!("{}/kos.sock", place.state().display());
    assert_eq!(Place::mounts(&place.mount()), [("fuse.kosfs".to_owned(), source)]);

    let (path, data) = (place.mem("file"), Rng::new(21).bytes(LEN));
    as_user("write, read and map", move || {
        fs::write(&path, &data)?;
        assert!(fs::read(&path)? == data);
        let file = File::options().read(true).write(true).open(&path)?;
        assert_eq!((file.metadata()?.uid(), file.metadata()?.gid()), (USER, USER));
        #[expect(unsafe_code, reason = "a mapping")]
        // SAFETY: nobody else changes the file.
        let (mut stores, loads) = unsafe { (MmapMut::map_mut(&file)?, Mmap::map(&file)?) };
        assert!(loads[..] == data[..]);
        stores[..4].copy_from_slice(b"mine");
        stores.flush()?;
        assert_eq!(&loads[..4], b"mine");
        let dir = path.parent().expect("directory");
        assert_eq!(fs::read_dir(dir)?.count(), 1);
        // As on any filesystem: what is for root alone.
        assert!(is_denied(&chown(&path, Some(0), None)));
        fs::set_permissions(dir, Permissions::from_mode(0o700))
    });
    let dir = place.mount();
    assert!(is_denied(&within("others", move || Ok(fs::read_dir(dir)))), "not even root may look");

    let jobs = place.mount().join("jobs");
    let said = as_user("a job", move || {
        fs::write(jobs.join("who"), "#!/bin/sh\nid -u\n")?;
        fs::read(jobs.join("by-name/who/wait"))?;
        fs::read_to_string(jobs.join("by-name/who/stdout"))
    });
    assert_eq!(said, format!("{USER}\n"));
    kos(&place, &["sync"], 0);
    kos(&place, &["down"], 0);
    place.is_gone();
    assert!(!place.mount().exists(), "made by up");
    let log = fs::read_to_string(place.state().join("log/fabricd.log")).expect("log");
    let uid = |path: PathBuf| fs::metadata(path).expect("stat").uid();
    assert_eq!(uid(place.state()), USER);
    assert!(log.contains("no memory tier"), "{log}");
    assert!(log.lines().count() < 12, "a line for what only root can do, and no more: {log}");
}

#[test]
fn a_users_node_comes_back_after_a_kill_and_ends_although_it_is_used() {
    if !inside("users::a_users_node_comes_back_after_a_kill_and_ends_although_it_is_used") {
        return;
    }
    let place = place();
    kos(&place, &["up"], 0);
    let path = place.mem("file");
    as_user("write", move || {
        let mut file = File::create(path)?;
        file.write_all(b"synced")?;
        file.sync_all()
    });
    place.kill();
    let said = kos(&place, &["up"], 0);
    assert!(said.contains("unmounted the dead kosfs mount"), "{said}");

    let (path, open) = (place.mem("file"), place.mem("open"));
    let (read, held) = as_user("read and hold", move || {
        let mut held = File::create(open)?;
        held.write_all(b"held")?;
        Ok((fs::read(path)?, held))
    });
    assert_eq!(read, b"synced");
    kos(&place, &["down"], 0);
    place.is_gone();
    assert!(within("stat", move || Ok(held.metadata())).is_err(), "cut off");

    let settings = place.root.path().join("fuse.conf");
    fs::write(&settings, "user_allow_other\n").expect("write");
    mount_bind(&settings, "/etc/fuse.conf").expect("bind");
    kos(&place, &["up"], 0);
    assert_eq!(place.read("open"), b"held", "others are let in where the administrator lets them");
    let open = place.mem("open");
    assert_eq!(as_user("read", move || fs::read(open)), b"held");
    kos(&place, &["down", "--wipe"], 0);
    assert!(!is_mounted(&place.mount()) && entries(&place.state()).is_empty());
}
