//! Who speaks with the kernel: `KOS_SESSION`.

use std::fs;
use std::path::Path;
use std::process::Command;

use kos_tests::unnamed::SESSION;

use crate::place::*;

/// The kernel's switch for io_uring.
const PARAMETERS: &str = "/sys/module/fuse/parameters";

fn threads(place: &Place) -> Vec<String> {
    let pid = place.pid().expect("it runs").as_raw_nonzero();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let name = |path: &Path| fs::read_to_string(path.join("comm")).unwrap_or_default();
    tasks.map(|task| name(&task.expect("task").path())).collect()
}

fn log(place: &Place) -> String {
    fs::read_to_string(place.state().join("log/fabricd.log")).expect("log")
}

/// `kos up` by a session.
fn up(place: &Place, session: &str) -> Command {
    let mut up = place.command();
    up.arg("up").arg("--state").arg(place.state()).arg("--mount").arg(place.mount());
    up.args(["--tier-ram", "64M"]).env(SESSION, session);
    up
}

#[test]
fn rings_take_the_requests_where_the_kernel_has_them() {
    if !Path::new(PARAMETERS).join("enable_uring").exists() {
        eprintln!("not tested: this kernel has no FUSE over io_uring");
        return;
    }
    let place = Place::new();
    expect(up(&place, "uring"), 0);
    assert!(!log(&place).contains("no io_uring"), "{}", log(&place));
    assert!(threads(&place).iter().any(|name| name.starts_with("ring-")), "{:?}", threads(&place));
    place.write_synced("file", b"words");
    assert_eq!(place.read("file"), b"words");
    place.expect(&["down", "--wipe"], 0);
}

/// In a mount namespace where the kernel's switch is not to be found.
#[test]
fn without_rings_requests_come_by_dev_fuse_and_the_log_says_so() {
    let place = Place::new();
    let script = "mount -t tmpfs none \"$1\" && shift && \"$@\" && cd \"$MNT/mem\" && echo words > file &&
        sync file && grep words file && mv file named && rm named && cd / && \"$1\" down --state \"$STATE\"";
    let plain = up(&place, "uring");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh", PARAMETERS]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.env(SESSION, "uring").env("MNT", place.mount()).env("STATE", place.state());
    expect(command, 0);
    let said = "no io_uring: /sys/module/fuse/parameters/enable_uring";
    assert!(log(&place).contains(said) && log(&place).contains("by /dev/fuse"), "{}", log(&place));
}

#[test]
fn another_word_is_refused() {
    let place = Place::new();
    let said = expect(up(&place, "netlink"), 2);
    assert!(said.contains("netlink") && said.contains("uring, dev or fuser"), "{said}");
    assert!(!place.state().exists(), "{said}");
}
