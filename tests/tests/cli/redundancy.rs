//! Stripes that lack shards or have too many on one state directory: counted, told and put right.

use std::fs;
use std::process::Command;

use kos_tests::{Rng, wait_for};
use rustix::mount::{MountFlags, mount, mount_remount};
use serde_json::Value;

use crate::place::{LEN, Place, expect};

fn count(status: &Value, name: &str) -> u64 {
    status[name].as_u64().expect("a number")
}

/// `kos status --json`, whatever its exit code.
fn status(place: &Place) -> Value {
    let code = place.health().expect("status");
    assert!(code == 0 || code == 4, "{code}");
    let mut command = place.command();
    command.args(["status", "--json", "--state"]).arg(place.state());
    let (_, said) = crate::place::run(command);
    serde_json::from_str(&said).expect("json")
}

fn metric(place: &Place, name: &str) -> u64 {
    let path = place.mount().join("sys/metrics");
    let text = crate::place::within("metrics", move || fs::read_to_string(path));
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name}: {text}"))
}

/// Wait until nothing is lacking as far as `kos status` says.
fn rebuilt(place: &Place) {
    wait_for("rebuild", || {
        let status = status(place);
        count(&status, "under_replicated_stripes") + count(&status, "under_spread_stripes") == 0
    });
}

/// Take the shards of a state away, as its admin says by the lock file that stays.
fn empty(place: &Place, state: usize) {
    let shards = place.states[state].join("shards");
    fs::remove_dir_all(&shards).expect("remove");
    fs::create_dir_all(shards.join("0")).expect("mkdir");
    fs::write(shards.join("0/lock"), b"").expect("lock");
}

fn set(place: &Place, file: &str, name: &str, value: &str) {
    let mut command = Command::new("setfattr");
    command.args(["-n", name, "-v", value]).arg(place.mem(file));
    expect(command, 0);
}

#[test]
fn a_lost_state_is_rebuilt_without_a_reader_and_spread_again_when_it_is_back() {
    let place = Place::spread(&["one", "two", "three"]);
    let data = Rng::new(31).bytes(LEN);
    place.expect(&["up"], 0);
    place.write("file", &data);
    place.expect(&["down"], 0);
    fs::remove_dir_all(&place.states[1]).expect("remove");

    place.expect(&["up"], 0);
    rebuilt(&place);
    assert_eq!(place.health(), Some(4), "a state directory is still missing");
    assert!(metric(&place, "kos_shards_repaired_total") >= 6, "two shards of each of three stripes");
    place.expect(&["down"], 0);

    // Nothing is claimed to be there any more, so it starts empty.
    place.expect(&["up"], 0);
    wait_for("an even spread", || place.health() == Some(0));
    assert!(metric(&place, "kos_shards_moved_total") >= 6);
    assert_eq!(metric(&place, "kos_shards_bad_total"), 0, "what moves is not damaged");
    place.expect(&["down"], 0);

    fs::remove_dir_all(&place.states[2]).expect("remove");
    place.expect(&["up"], 0);
    assert!(place.read("file") == data, "another one may be lost");
    place.expect(&["down"], 0);
}

#[test]
fn a_state_that_comes_back_empty_is_filled_again() {
    let place = Place::spread(&["one", "two", "three"]);
    let data = Rng::new(32).bytes(LEN);
    place.expect(&["up"], 0);
    place.write("file", &data);
    place.expect(&["down"], 0);
    for state in [1, 2, 1] {
        empty(&place, state);
        place.expect(&["up"], 0);
        wait_for("the rebuild", || place.health() == Some(0));
        assert!(place.read("file") == data);
        place.expect(&["down"], 0);
    }
}

#[test]
fn lost_stripes_are_told_until_they_are_removed() {
    let place = Place::spread(&["one", "two", "three"]);
    place.expect(&["up"], 0);
    place.write("bare", b"");
    set(&place, "bare", "user.kos.ec", "4+0");
    place.write("bare", &Rng::new(33).bytes(LEN));
    place.write("kept", &Rng::new(34).bytes(LEN));
    place.expect(&["down"], 0);
    empty(&place, 1);
    place.expect(&["up"], 0);
    wait_for("the rebuild of what can be", || count(&status(&place), "under_replicated_stripes") == 3);
    assert_eq!((place.health(), metric(&place, "kos_stripes_lost")), (Some(4), 3));
    wait_for("a failed try", || metric(&place, "kos_rebuilds_failed_total") >= 3);
    let path = place.mount().join("sys/health");
    let health = crate::place::within("health", move || fs::read_to_string(path));
    assert!(health.starts_with("degraded: 3 stripes lack shards (3 of them lost)"), "{health}");
    let path = place.mem("bare");
    crate::place::within("remove", move || fs::remove_file(path));
    wait_for("health", || place.health() == Some(0));
    place.expect(&["down"], 0);
}

#[test]
fn a_full_state_leaves_stripes_unevenly_spread_until_it_has_room() {
    let place = Place::spread(&["one", "two", "small"]);
    fs::create_dir(&place.states[2]).expect("mkdir");
    mount("tmpfs", &place.states[2], "tmpfs", MountFlags::empty(), Some(c"size=1m")).expect("tmpfs");
    let data = Rng::new(35).bytes(LEN);
    place.expect(&["up"], 0);
    place.write_synced("file", &data);
    wait_for("the count", || count(&status(&place), "under_spread_stripes") > 0);
    assert_eq!(place.health(), Some(4));
    assert_eq!(count(&status(&place), "under_replicated_stripes"), 0);
    mount_remount(&place.states[2], MountFlags::empty(), c"size=64m").expect("remount");
    wait_for("an even spread", || place.health() == Some(0));
    assert!(place.read("file") == data);
    place.expect(&["down"], 0);
}
