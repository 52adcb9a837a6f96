//! A node from its first start to its end, also when it is killed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;

use kos_tests::{Rng, binary, is_mounted, wait_for};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, getsid};
use serde_json::Value;

use crate::place::*;

#[test]
fn up_and_down_keep_the_data_and_may_be_repeated() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.answers();
    let pid = place.pid();
    let said = place.expect(&["up"], 0);
    assert!(said.contains("already up") && names(&said, &place.mount()), "{said}");
    assert_eq!((place.pid(), place.daemons().len()), (pid, 1), "it does nothing");
    place.answers();
    let data = Rng::new(1).bytes(LEN);
    place.write("file", &data);
    place.write("small", b"not synced");
    place.expect(&["down"], 0);
    place.is_gone();
    assert!(!is_mounted(&place.ram()), "memory is given back");
    let said = place.expect(&["down"], 3);
    assert!(said.contains("not running"), "{said}");
    place.expect(&["up"], 0);
    assert!(place.read("file") == data && place.read("small") == b"not synced");
    place.expect(&["down"], 0);
}

#[test]
fn only_a_mount_directory_that_up_made_goes_again() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.expect(&["down"], 0);
    assert!(!place.mount().exists(), "made by up");
    fs::create_dir(place.mount()).expect("mkdir");
    place.expect(&["up"], 0);
    place.expect(&["down"], 0);
    assert!(place.mount().exists(), "there before");
    fs::remove_dir(place.mount()).expect("rmdir");
    place.expect(&["up"], 0);
    place.kill();
    place.expect(&["up"], 0);
    place.expect(&["down"], 0);
    assert!(!place.mount().exists(), "made by up, and found again after a kill");
}

#[test]
fn down_flushes_what_programs_still_have_open() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let data = Rng::new(2).bytes(LEN);
    let (path, bytes) = (place.mem("open"), data.clone());
    let file = within("write", move || {
        let mut file = File::create(path)?;
        file.write_all(&bytes)?;
        Ok(file)
    });
    place.expect(&["down"], 0);
    place.is_gone();
    drop(file);
    place.expect(&["up"], 0);
    assert!(place.read("open") == data);
    place.expect(&["down"], 0);
}

#[test]
fn many_at_once_do_what_one_does() {
    let place = Place::new();
    let at_once = |args: &[&str], codes: &[i32]| -> Vec<String> {
        thread::scope(|scope| {
            let all: Vec<_> = codes.iter().map(|code| scope.spawn(|| place.expect(args, *code))).collect();
            all.into_iter().map(|one| one.join().expect("kos")).collect()
        })
    };
    for dead in [false, true] {
        let said = at_once(&["up"], &[0; 6]);
        let started = said.iter().filter(|said| said.contains("kosfs is up")).count();
        let found = said.iter().filter(|said| said.contains("already up")).count();
        assert_eq!((started, found), (1, 5), "after a kill: {dead}: {said:?}");
        assert_eq!(place.daemons(), [place.pid().expect("running")]);
        place.answers();
        place.kill();
    }
    place.expect(&["up"], 0);
    let ended = thread::scope(|scope| {
        let down = || {
            let mut command = place.command();
            command.arg("down").arg("--state").arg(place.state());
            run(command).0
        };
        let all: Vec<_> = (0..4).map(|_| scope.spawn(down)).collect();
        let mut ended: Vec<_> = all.into_iter().map(|one| one.join().expect("down")).collect();
        ended.sort_unstable();
        ended
    });
    assert_eq!(ended, [Some(0), Some(3), Some(3), Some(3)], "one stops it, the others find it stopped");
    place.is_gone();
}

#[test]
fn many_first_ups_at_once_do_what_one_does() {
    for _ in 0..4 {
        let place = Place::new();
        let said: Vec<String> = thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| place.expect(&["up"], 0))).collect();
            all.into_iter().map(|one| one.join().expect("kos")).collect()
        });
        let started = said.iter().filter(|said| said.contains("kosfs is up")).count();
        assert_eq!((started, place.daemons().len()), (1, 1), "{said:?}");
        place.expect(&["down"], 0);
    }
}

#[test]
fn status_says_what_was_promised() {
    let place = Place::new();
    let down = |status: &Value| {
        assert!(PROMISED.iter().all(|key| status.get(key).is_some()), "{status}");
        assert_eq!((&status["health"], &status["nodes_up"]), (&"down".into(), &0.into()));
    };
    down(&place.status(3));
    let said = place.expect(&["status"], 3);
    assert!(said.contains("down") && said.contains("kos up"), "{said}");
    assert!(!place.state().exists(), "asking makes nothing");

    place.expect(&["up"], 0);
    let pid = Value::from(place.pid().expect("running").as_raw_nonzero().get());
    let dir = Value::from(place.mount().to_string_lossy());
    let source = Value::from(Place::mounts(&place.mount())[0].1.clone());
    let status = place.status(0);
    assert!(PROMISED.iter().all(|key| !status[key].is_null()), "{status}");
    assert_eq!((&status["health"], &status["nodes_up"]), (&"ok".into(), &1.into()));
    assert_eq!(
        (&status["under_replicated_stripes"], &status["under_spread_stripes"]),
        (&0.into(), &0.into())
    );
    let (mounts, nodes) =
        (status["mounts"].as_array().expect("list"), status["nodes"].as_array().expect("list"));
    assert_eq!((mounts.len(), nodes.len()), (1, 1), "{status}");
    assert_eq!((&mounts[0]["dir"], &mounts[0]["source"], &mounts[0]["pid"]), (&dir, &source, &pid));
    assert!(mounts[0]["state"].is_string(), "{status}");
    assert_eq!((&nodes[0]["state"], &nodes[0]["pid"]), (&"up".into(), &pid));
    assert!(nodes[0]["addr"].is_string(), "{status}");
    assert_eq!(status["mount_source"], source);
    assert_eq!((&status["leader"], &status["leader_pid"]), (&nodes[0]["id"], &pid));
    let said = place.expect(&["status"], 0);
    let first = said.lines().next().expect("a line");
    assert!(first.starts_with("health") && first.ends_with("ok"), "{said}");
    assert!(names(&said, &place.mount()) && said.contains(&pid.to_string()), "{said}");

    place.expect(&["down"], 0);
    down(&place.status(3));
}

#[test]
fn the_daemon_is_on_its_own() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let pid = place.pid().expect("running");
    assert_eq!(getsid(Some(pid)).expect("session"), pid, "a session of its own");
    let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", pid.as_raw_nonzero())).expect("link");
    let log = place.state().join("log/fabricd.log");
    assert_eq!((link("fd/0"), link("fd/1"), link("fd/2")), ("/dev/null".into(), log.clone(), log));
    assert_eq!(link("cwd"), Path::new("/"), "it keeps no directory busy");
    let mode = fs::metadata(place.state()).expect("state").mode();
    assert_eq!(mode & 0o777, 0o700, "raw data is root's");
    place.expect(&["down"], 0);
}

#[test]
fn the_daemon_gets_the_state_as_it_was_given() {
    let place = Place::new();
    fs::create_dir(place.root.path().join("real")).expect("mkdir");
    symlink("real", place.state()).expect("symlink");
    let absolute = place.state();
    for given in ["state", "./state", "real/../state", &absolute.to_string_lossy()] {
        place.on(&[Path::new(given)], &["up", "--mount", "mnt"], 0);
        place.answers_from(given);
        let status = place.status(0);
        let pid = Pid::from_raw(i32::try_from(status["leader_pid"].as_i64().expect("pid")).expect("pid"));
        let words = cmdline(pid.expect("pid"));
        let state = words.windows(2).find(|pair| pair[0] == b"--state").map(|pair| pair[1].clone());
        assert_eq!(state.as_deref(), Some(given.as_bytes()));
        // The other names of the same directory mean the same node.
        for other in ["./state", "real"] {
            place.on(&[Path::new(other)], &["status"], 0);
            place.on(&[Path::new(other)], &["sync"], 0);
        }
        place.on(&[Path::new("real")], &["down"], 0);
        place.is_gone();
    }
}

#[test]
fn sync_makes_durable_and_needs_a_node() {
    let place = Place::new();
    let said = place.expect(&["sync"], 3);
    assert!(said.contains("not running"), "{said}");
    assert!(!place.state().exists(), "it makes nothing");
    place.expect(&["up"], 0);
    let data = Rng::new(3).bytes(LEN);
    let path = place.mem("open");
    let mut file = within("create", move || File::create(path));
    let bytes = data.clone();
    let file = within("write", move || {
        file.write_all(&bytes)?;
        Ok(file)
    });
    place.expect(&["sync"], 0);
    place.kill();
    drop(file);
    place.expect(&["sync"], 3);
    place.expect(&["up"], 0);
    assert!(place.read("open") == data, "synced, though it was still open");
    place.expect(&["down"], 0);
    place.expect(&["sync"], 3);
}

#[test]
fn up_cleans_up_after_a_kill() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let data = Rng::new(4).bytes(LEN);
    place.write_synced("file", &data);
    place.kill();
    let status = place.status(3);
    assert_eq!(status["mounts"][0]["state"], "stale", "{status}");
    let said = place.expect(&["status"], 3);
    assert!(said.contains("kos up") && names(&said, &place.mount()), "{said}");
    let said = place.expect(&["up"], 0);
    assert!(said.contains("cleaning up") && said.contains("unmounted the dead kosfs mount"), "{said}");
    place.answers();
    assert!(place.read("file") == data);

    place.kill();
    let said = place.expect(&["down"], 0);
    assert!(said.contains("cleaning up"), "{said}");
    place.is_gone();
    place.expect(&["down"], 3);
    let said = place.expect(&["up"], 0);
    assert!(!said.contains("clean"), "there is nothing to clean: {said}");
    assert!(place.read("file") == data);
    place.expect(&["down"], 0);
}

#[test]
fn a_process_that_got_the_daemons_number_is_left_alone() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.write_synced("file", b"data");
    place.kill();
    let mut other = Command::new("sleep").arg("300").spawn().expect("sleep");
    let run = place.state().join("run.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&run).expect("run.json")).expect("json");
    told["pid"] = other.id().into();
    fs::write(&run, told.to_string()).expect("run.json");
    let codes = [(&["status"][..], 3), (&["sync"], 3), (&["down"], 0), (&["down"], 3), (&["up"], 0)];
    for (args, code) in codes {
        place.expect(args, code);
    }
    let ended = other.try_wait().expect("sleep");
    other.kill().and_then(|()| other.wait()).expect("sleep");
    assert!(ended.is_none(), "{ended:?}");
    assert_eq!(place.read("file"), b"data");
    place.expect(&["down"], 0);
}

#[test]
fn a_stale_mount_without_its_state_is_cleaned() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.kill();
    unmount(place.ram(), UnmountFlags::DETACH).expect("unmount");
    fs::remove_dir_all(place.state()).expect("remove");
    let said = place.expect(&["up"], 0);
    assert!(said.contains("unmounted the dead kosfs mount") && names(&said, &place.mount()), "{said}");
    place.answers();
    place.write("file", b"new");
    place.expect(&["down"], 0);
    assert!(place.mount().exists(), "this up has not made it");
}

#[test]
fn an_unmount_by_hand_is_a_clean_end() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let data = Rng::new(5).bytes(LEN);
    place.write("file", &data);
    wait_for("unmount", || unmount(place.mount(), UnmountFlags::empty()).is_ok());
    wait_for("the end", || place.processes().is_empty());
    place.expect(&["status"], 3);
    let said = place.expect(&["up"], 0);
    assert!(!said.contains("without a clean stop"), "{said}");
    assert!(place.read("file") == data);
    place.expect(&["down"], 0);
}

#[test]
fn a_daemon_that_hangs_is_degraded() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.signal(Signal::STOP);
    // A thread that has not seen the signal yet still answers.
    wait_for("the stop", || place.is_stopped());
    let status = place.status(4);
    assert_eq!((&status["health"], &status["mounts"][0]["state"]), (&"degraded".into(), &"hung".into()));
    let said = place.expect(&["status"], 4);
    assert!(said.contains("degraded") && names(&said, &place.mount()), "{said}");
    place.signal(Signal::CONT);
    wait_for("health", || place.health() == Some(0));
    place.write("file", b"it goes on");
    place.expect(&["down"], 0);
    place.is_gone();
}

#[test]
fn without_words_it_is_kos_and_var_lib_kosfs() {
    let place = Place::new();
    // In a mount namespace of its own, where the machine's own node, if there is one, is out of the way.
    let script = r#"
        set -eu
        awk '$5 == "/kos" { print $5 }' /proc/self/mountinfo | xargs -r -n 1 umount -l
        mount -t tmpfs none /var/lib
        "$1" up
        trap '"$1" down --wipe' EXIT
        "$1" status --json > status.json
        sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo > available
        pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' /var/lib/kosfs/run.json | head -n 1)
        tr '\0' '\n' < "/proc/$pid/cmdline" > cmdline
        echo written > /kos/mem/file
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(binary("kos")).current_dir(place.root.path());
    expect(command, 0);
    let read = |name: &str| fs::read_to_string(place.root.path().join(name)).expect("read");
    let status: Value = serde_json::from_str(&read("status.json")).expect("json");
    assert_eq!(status["mounts"][0]["dir"], "/kos");
    assert_eq!(status["mount_source"], "/var/lib/kosfs/kos.sock");
    let cmdline = read("cmdline");
    let words: Vec<&str> = cmdline.lines().collect();
    let after = |option: &str| words.windows(2).find(|pair| pair[0] == option).expect("option")[1];
    assert_eq!((after("--state"), after("--mount")), ("/var/lib/kosfs", "/kos"));
    let (given, available): (u64, u64) = (
        after("--tier-ram").parse().expect("bytes"),
        read("available").trim().parse::<u64>().expect("kB") * 1024,
    );
    // Others use memory meanwhile.
    assert!((available / 8..available / 2).contains(&given), "{given} of {available}");
}
