//! What is refused, what is not ours, and states that are lost.

use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use kos_tests::{Rng, binary, copy_binary, is_mounted, wait_for};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::place::*;

#[test]
fn what_is_not_ours_is_refused_by_name() {
    let place = Place::new();
    let mnt = place.mount();
    fs::create_dir(&mnt).expect("mkdir");
    fs::write(mnt.join("theirs"), b"x").expect("write");
    let said = place.expect(&["up"], 1);
    assert!(names(&said, &mnt) && said.contains("not empty"), "{said}");
    assert_eq!(entries(&mnt), ["theirs"]);
    assert!(!place.state().exists(), "where something is refused nothing is made");
    fs::remove_file(mnt.join("theirs")).expect("remove");

    mount("none", &mnt, "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    let said = place.expect(&["up"], 1);
    let left = Place::mounts(&mnt);
    unmount(&mnt, UnmountFlags::empty()).expect("unmount");
    assert!(names(&said, &mnt) && said.contains("tmpfs"), "{said}");
    assert_eq!(left, [("tmpfs".to_owned(), "none".to_owned())], "it is still theirs");
    assert!(!place.state().exists());

    fs::remove_dir(&mnt).expect("rmdir");
    fs::write(&mnt, b"a file").expect("write");
    assert!(names(&place.expect(&["up"], 1), &mnt));
    assert_eq!(fs::read(&mnt).expect("read"), b"a file");
    fs::remove_file(&mnt).expect("remove");
    let deep = mnt.join("mnt");
    assert!(
        names(&place.expect(&["up", "--mount", &deep.to_string_lossy()], 1), &deep),
        "no directory above"
    );
    assert!(!mnt.exists());
}

#[test]
fn a_state_that_is_not_ours_is_refused_and_never_wiped() {
    let place = Place::new();
    fs::create_dir(place.state()).expect("mkdir");
    fs::write(place.state().join("theirs"), b"x").expect("write");
    for args in [&["up"][..], &["down"], &["down", "--wipe"], &["status"], &["sync"]] {
        let said = place.expect(args, 1);
        assert!(names(&said, &place.state()), "{args:?}: {said}");
        assert_eq!(entries(&place.state()), ["theirs"], "{args:?}");
    }
    assert!(!place.mount().exists());

    // Neither as the second of two.
    let first = place.root.path().join("first");
    let said = place.on(&[&first, &place.state()], &["up"], 1);
    assert!(names(&said, &place.state()) && !first.exists(), "{said}");
    assert_eq!(entries(&place.state()), ["theirs"]);

    let inside = place.root.path().join("first/mnt");
    place.on(&[&first], &["up", "--mount", &inside.to_string_lossy()], 1);
    place.on(&[&place.mount().join("state")], &["up"], 1);
    assert!(!first.exists() && !place.mount().exists(), "in one another");
}

#[test]
fn a_running_node_keeps_its_mount() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.write("file", b"data");
    let other = place.root.path().join("other");
    let said = place.expect(&["up", "--mount", &other.to_string_lossy()], 1);
    assert!(names(&said, &place.mount()) && names(&said, &other), "{said}");
    let said = place.on(&[&place.root.path().join("second")], &["up"], 1);
    assert!(names(&said, &place.mount()) && said.contains("another kosfs state"), "{said}");
    assert!(!other.exists() && !place.root.path().join("second").exists());
    place.answers();
    assert_eq!(place.read("file"), b"data");
    place.expect(&["down"], 0);
}

#[test]
fn usage_errors_and_the_cluster() {
    let place = Place::new();
    let wrong: [&[&str]; 10] = [
        &["up", "--no-such-option"],
        &["up", "--tier-ram", "much"],
        &["up", "--nodes", "0"],
        &["up", "--nodes", "two"],
        &["up", "a-word"],
        &["down", "--force"],
        &["down", "--mount", "mnt"],
        &["status", "--yaml"],
        &["sync", "now"],
        &["no-such-command"],
    ];
    for args in wrong {
        let said = place.expect(args, 2);
        assert!(said.contains("error"), "{args:?}: {said}");
    }
    place.exactly(&[], 2);
    place.exactly(&["status", "--state"], 2);
    for args in [&["--help"][..], &["--version"], &["up", "--help"], &["down", "--help"]] {
        place.exactly(args, 0);
    }
    let said = place.expect(&["up", "--nodes", "2"], 1);
    assert!(said.contains("cluster") && said.contains("--nodes 2"), "{said}");
    assert_eq!(entries(place.root.path()), [""; 0], "nothing was made");
}

#[test]
fn without_root_up_says_what_to_type() {
    let place = Place::new();
    fs::set_permissions(place.root.path(), Permissions::from_mode(0o755)).expect("chmod");
    let kos = place.root.path().join("kos");
    copy_binary("kos", &kos);
    let mut command = Command::new(&kos);
    command.uid(65534).gid(65534).current_dir("/");
    command.arg("up").arg("--state").arg(place.state()).arg("--mount").arg(place.mount());
    let said = expect(command, 1);
    let words = format!("up --state {} --mount {}", place.state().display(), place.mount().display());
    assert!(said.contains("sudo") && names(&said, &kos) && said.contains(&words), "{said}");
    assert!(!place.state().exists() && !place.mount().exists());
}

/// In a mount namespace whose /dev holds what programs need and no fuse.
#[test]
fn without_dev_fuse_up_says_what_to_type() {
    let place = Place::new();
    let hide = "mount -t tmpfs none /mnt && for node in null zero urandom; do
            touch /mnt/$node && mount --bind /dev/$node /mnt/$node; done &&
        mount --rbind /mnt /dev && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", hide, "sh"]).arg(binary("kos"));
    command.arg("up").arg("--state").arg(place.state()).arg("--mount").arg(place.mount());
    let said = expect(command, 1);
    let typed = ["modprobe fuse", "--device /dev/fuse"];
    assert!(said.contains("/dev/fuse: ") && typed.iter().any(|line| said.contains(line)), "{said}");
    assert!(!place.state().exists() && !place.mount().exists(), "nothing was made: {said}");
    // The same command where it is there.
    place.expect(&["up"], 0);
    place.expect(&["down", "--wipe"], 0);
}

#[test]
fn wipe_deletes_everything_and_nothing_else() {
    let place = Place::spread(&["one", "two"]);
    let beside = place.root.path().join("beside");
    fs::write(&beside, b"x").expect("write");
    place.expect(&["up"], 0);
    place.write_synced("file", &Rng::new(6).bytes(LEN));
    let said = place.on(&[&place.states[0]], &["down", "--wipe"], 0);
    for state in &place.states {
        assert!(names(&said, state), "{said}");
        assert_eq!(entries(state), [""; 0], "{}", state.display());
    }
    place.is_gone();
    place.expect(&["down", "--wipe"], 0);
    place.expect(&["up"], 0);
    let mem = place.mount().join("mem");
    assert_eq!(within("list", move || Ok(entries(&mem))), [""; 0]);

    place.kill();
    place.expect(&["down", "--wipe"], 0);
    place.is_gone();
    assert!(!is_mounted(&place.ram()) && !place.mount().exists());
    assert!(place.states.iter().all(|state| entries(state).is_empty()));
    assert!(beside.exists());
}

#[test]
fn several_states_belong_together() {
    let place = Place::spread(&["one", "two", "three"]);
    let [one, two, three] = [0, 1, 2].map(|nth: usize| place.states[nth].as_path());
    place.expect(&["up"], 0);
    let data = Rng::new(7).bytes(LEN);
    place.write("file", &data);
    place.expect(&["sync"], 0);
    for state in &place.states {
        assert!(shard_bytes(state) > 2 << 20, "{}: {}", state.display(), shard_bytes(state));
    }
    let words = cmdline(place.pid().expect("running"));
    let given = words.windows(2).filter(|pair| pair[0] == b"--state").map(|pair| pair[1].clone());
    let expected: Vec<_> = place.states.iter().map(|state| state.as_os_str().as_bytes().to_vec()).collect();
    assert_eq!(given.collect::<Vec<_>>(), expected, "in order");
    for state in &place.states {
        place.on(&[state], &["status"], 0);
        place.on(&[state], &["sync"], 0);
    }
    place.on(&[three], &["down"], 0);
    place.is_gone();
    let others: [&[&Path]; 5] = [&[one], &[one, two], &[one, three, two], &[two, one, three], &[three]];
    for states in others {
        let said = place.on(states, &["up"], 1);
        assert!(names(&said, one), "{states:?}: {said}");
    }
    place.is_gone();
    place.expect(&["up"], 0);
    assert!(place.read("file") == data);
    place.expect(&["down"], 0);
}

#[test]
fn a_lost_state_is_degraded_and_loses_nothing() {
    let place = Place::spread(&["one", "two", "three"]);
    let lost = place.states[1].clone();
    place.expect(&["up"], 0);
    let data = Rng::new(8).bytes(LEN);
    place.write("file", &data);
    place.expect(&["down"], 0);
    fs::remove_dir_all(&lost).expect("remove");

    place.expect(&["up"], 0);
    assert!(place.read("file") == data, "two of six shards are decoded around");
    assert_eq!(place.status(4)["health"], "degraded");
    let said = place.expect(&["status"], 4);
    assert!(said.contains("degraded"), "{said}");
    let log = fs::read_to_string(place.state().join("log/fabricd.log")).expect("log");
    let health = place.mount().join("sys/health");
    let health = within("health", move || fs::read_to_string(health));
    assert!(health.starts_with("degraded"), "{health}");
    assert!(names(&log, &lost), "the log names it: {log}");
    place.write_synced("more", &data);
    place.kill();
    place.expect(&["up"], 0);
    assert!(place.read("file") == data && place.read("more") == data);
    place.expect(&["down"], 0);

    // As the message says: an empty disk is taken on purpose only.
    fs::create_dir_all(lost.join("shards/0")).expect("mkdir");
    File::create(lost.join("shards/0/lock")).expect("touch");
    place.expect(&["up"], 0);
    // The two others hold three shards of each stripe until it has its part.
    wait_for("an even spread", || place.health() == Some(0));
    assert!(place.read("file") == data && place.read("more") == data);
    place.write_synced("third", &data);
    assert!(shard_bytes(&lost) > 2 << 20, "it takes its part again");
    place.expect(&["down"], 0);
}

#[test]
fn a_state_lost_while_it_runs_loses_nothing() {
    let place = Place::spread(&["one", "two", "three"]);
    place.expect(&["up"], 0);
    let data = Rng::new(9).bytes(LEN);
    place.write_synced("file", &data);
    fs::remove_dir_all(&place.states[2]).expect("remove");
    place.write_synced("more", &data);
    assert!(place.read("file") == data && place.read("more") == data);
    place.kill();
    place.expect(&["up"], 0);
    assert!(place.read("file") == data && place.read("more") == data);
    place.expect(&["status"], 4);
    place.expect(&["down"], 0);
}

#[test]
fn a_lost_first_state_is_not_taken_for_a_new_one() {
    let place = Place::spread(&["one", "two"]);
    let (first, aside) = (place.state(), place.root.path().join("aside"));
    place.expect(&["up"], 0);
    let data = Rng::new(10).bytes(LEN);
    place.write("file", &data);
    place.expect(&["down"], 0);
    let bytes = shard_bytes(&place.states[1]);
    fs::rename(&first, &aside).expect("rename");
    let said = place.expect(&["up"], 1);
    assert!(names(&said, &first), "{said}");
    place.is_gone();
    assert!(!place.mount().exists(), "a start that failed leaves no directory");
    assert_eq!(shard_bytes(&place.states[1]), bytes, "the other shards are untouched");
    fs::remove_dir_all(&first).expect("remove");
    fs::rename(&aside, &first).expect("rename");
    place.expect(&["up"], 0);
    assert!(place.read("file") == data);
    place.expect(&["down"], 0);
}
