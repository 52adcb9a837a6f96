//! The process that holds the daemon's mount: who it is, and that nothing of it is left behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use kos_tests::{is_mounted, wait_for};
use rustix::process::{Pid, Signal, getsid};
use serde_json::Value;

use crate::place::*;

fn run(place: &Place) -> Value {
    serde_json::from_slice(&fs::read(place.state().join("run.json")).expect("run.json")).expect("json")
}

fn raw(pid: Pid) -> Value {
    pid.as_raw_nonzero().get().into()
}

fn supervisor(place: &Place) -> Pid {
    let all = place.supervisors();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

#[test]
fn up_starts_both_and_down_ends_both() {
    let place = Place::new();
    assert!(place.status(3)["supervisor_pid"].is_null());
    place.expect(&["up"], 0);
    let (daemon, above) = (place.pid().expect("running"), supervisor(&place));
    assert_eq!(place.daemons(), [daemon]);
    assert_eq!((&run(&place)["pid"], &run(&place)["supervisor"]), (&raw(daemon), &raw(above)));
    assert_eq!(place.status(0)["supervisor_pid"], raw(above));
    assert_eq!(getsid(Some(above)).expect("session"), above, "a session of its own");
    let said = place.expect(&["up"], 0);
    assert!(
        said.contains("already up") && said.contains(&format!("pid {},", daemon.as_raw_nonzero())),
        "{said}"
    );
    place.expect(&["down"], 0);
    place.is_gone();
    assert!(place.status(3)["supervisor_pid"].is_null());
}

#[test]
fn both_may_be_killed_and_up_cleans_up() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.write_synced("file", b"words");
    place.kill();
    let said = place.expect(&["up"], 0);
    assert!(said.contains("cleaning up") && said.contains("unmounted the dead kosfs mount"), "{said}");
    assert_eq!(place.read("file"), b"words");
    assert_eq!((place.daemons().len(), place.supervisors().len()), (1, 1));
    place.expect(&["down"], 0);
    place.is_gone();
}

#[test]
fn without_its_supervisor_a_daemon_goes_on() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let daemon = place.pid().expect("running");
    assert!(place.send(supervisor(&place), Signal::KILL));
    wait_for("the news", || run(&place)["supervisor"].is_null());
    let events = place.mount().join("sys/events");
    let events = within("events", move || fs::read_to_string(events));
    assert!(events.contains("supervisor it is gone"), "{events}");
    place.write("file", b"words");
    assert!(place.status(0)["supervisor_pid"].is_null());
    let said = place.expect(&["up"], 0);
    assert!(said.contains("already up"), "{said}");
    let said = place.expect(&["upgrade"], 1);
    assert!(said.contains("no supervisor") && said.contains("kos down; kos up"), "{said}");
    assert_eq!(place.pid(), Some(daemon));
    place.expect(&["down"], 0);
    place.is_gone();
    place.expect(&["up"], 0);
    assert_eq!(place.read("file"), b"words");
    place.expect(&["down"], 0);
}

#[test]
fn a_signal_to_the_supervisor_ends_both_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        place.expect(&["up"], 0);
        place.write("file", b"not synced");
        assert!(place.send(supervisor(&place), signal));
        wait_for("the end", || place.processes().is_empty());
        assert!(!is_mounted(&place.mount()) && !place.state().join("run.json").exists());
        let said = place.expect(&["up"], 0);
        assert!(!said.contains("without a clean stop"), "{said}");
        assert_eq!(place.read("file"), b"not synced");
        place.expect(&["down"], 0);
    }
}

#[test]
fn an_upgrade_needs_a_node() {
    let place = Place::new();
    let said = place.expect(&["upgrade"], 3);
    assert!(said.contains("not running") && !place.state().exists(), "{said}");
    place.expect(&["up"], 0);
    place.expect(&["down"], 0);
    let said = place.expect(&["upgrade"], 3);
    assert!(said.contains("not running"), "{said}");
}

/// `kos` in a directory of its own, beside a program that is the daemon.
fn beside(place: &Place, name: &str, program: impl FnOnce(&Path)) -> PathBuf {
    let dir = place.root.path().join(name);
    fs::create_dir(&dir).expect("mkdir");
    kos_tests::copy_binary("kos", &dir.join("kos"));
    program(&dir.join("fabricd"));
    dir.join("kos")
}

fn upgrade(place: &Place, kos: &Path, code: i32) -> String {
    let mut command = Command::new(kos);
    command.arg("upgrade").arg("--state").arg(place.state());
    expect(command, code)
}

#[test]
fn an_upgrade_replaces_the_daemon_under_what_is_open() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let (before, above) = (place.pid().expect("running"), supervisor(&place));
    let path = place.mem("file");
    let mut file = fs::File::options().read(true).write(true).create_new(true).open(&path).expect("create");
    file.write_all(b"before").expect("write");
    let new = beside(&place, "new", |program| kos_tests::copy_binary("fabricd", program));
    for (round, kos) in [&new, &kos_tests::binary("kos"), &new].into_iter().enumerate() {
        let old = place.pid().expect("running");
        let said = upgrade(&place, kos, 0);
        let now = place.pid().expect("running");
        let line = format!("pid {} → pid {}", old.as_raw_nonzero(), now.as_raw_nonzero());
        assert!(now != old && said.contains(&line), "{said}");
        assert_eq!((place.daemons(), supervisor(&place)), (vec![now], above));
        let executed = fs::read_link(format!("/proc/{}/exe", now.as_raw_nonzero())).expect("exe");
        assert_eq!(executed, kos.with_file_name("fabricd"));
        place.answers();
        file.write_all(format!(", {round}").as_bytes()).expect("write");
        assert_eq!(place.read("file"), format!("before{}", &", 0, 1, 2"[..3 * (round + 1)]).into_bytes());
    }
    assert_ne!(place.pid(), Some(before));
    drop(file);
    place.expect(&["down"], 0);
    place.is_gone();
}

#[test]
fn a_program_that_does_not_come_to_serve_gives_way_to_the_one_before() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let mut file = fs::File::create(place.mem("file")).expect("create");
    file.write_all(b"before").expect("write");
    let broken = beside(&place, "broken", |program| {
        let text = "#!/bin/bash\n[ \"$1\" = --version ] && echo fabricd 9.9.9 && exit 0\nexit 1\n";
        fs::write(program, text).expect("write");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("chmod");
    });
    for _ in 0..2 {
        let (old, above) = (place.pid().expect("running"), supervisor(&place));
        let said = upgrade(&place, &broken, 1);
        let now = place.pid().expect("running");
        assert!(said.contains("the new program did not come to serve"), "{said}");
        assert!(said.contains("back to the previous program"), "{said}");
        assert_ne!(now, old);
        assert_eq!((place.daemons(), supervisor(&place)), (vec![now], above));
        assert!(!place.state().join("upgrade").exists());
        file.write_all(b" and after").expect("write");
    }
    assert_eq!(place.read("file"), b"before and after and after");
    assert_eq!(place.status(0)["health"], "ok");
    // What it goes back to is what it goes on with.
    place.signal(Signal::KILL);
    file.write_all(b", always").expect("write");
    drop(file);
    assert_eq!(place.read("file"), b"before and after and after, always");
    wait_for("the next daemon", || place.pid().is_some());
    // What cannot even say its version is not tried.
    let silent = beside(&place, "silent", |program| kos_tests::copy_binary("mount-kosfs", program));
    let serving = place.pid();
    let said = upgrade(&place, &silent, 1);
    assert!(said.contains("does not say its version"), "{said}");
    assert_eq!(place.pid(), serving);
    place.expect(&["down"], 0);
    place.is_gone();
}

#[test]
fn other_sessions_have_no_supervisor() {
    let place = Place::new();
    place.expect(&["up", "--session", "fuser"], 0);
    assert!(place.supervisors().is_empty() && run(&place)["supervisor"].is_null());
    let said = place.expect(&["upgrade"], 1);
    assert!(said.contains("kos down; kos up"), "{said}");
    // Without anybody to hand over to it goes on.
    place.signal(Signal::HUP);
    let log = place.state().join("log/fabricd.log");
    wait_for("the refusal", || fs::read_to_string(&log).expect("log").contains("this one goes on"));
    place.answers();
    place.expect(&["down"], 0);
    place.is_gone();
}

/// A supervisor whose daemon has just crashed, as `kos` sees it.
fn alone(place: &Place) -> Child {
    let script = "trap 'exit 0' TERM; while :; do sleep 0.02; done";
    let mut command = Command::new("bash");
    command.arg0("fabricd").args(["-c", script, "fabricd", "--supervise", "--state"]).arg(place.state());
    let child = command.stdin(Stdio::null()).spawn().expect("bash");
    wait_for("the supervisor", || !place.supervisors().is_empty());
    let mut told = run(place);
    told["supervisor"] = child.id().into();
    fs::write(place.state().join("run.json"), told.to_string()).expect("run.json");
    child
}

#[test]
fn between_two_daemons_up_waits_and_down_ends_the_supervisor() {
    let place = Place::new();
    place.expect(&["up"], 0);
    place.write_synced("file", b"words");
    place.kill();
    let mut above = alone(&place);
    let status = place.status(4);
    assert_eq!((&status["health"], &status["supervisor_pid"]), (&"degraded".into(), &above.id().into()));
    let said = place.expect(&["upgrade"], 1);
    assert!(said.contains("starting or stopping"), "{said}");

    let said = thread::scope(|scope| {
        let up = scope.spawn(|| place.expect(&["up"], 0));
        thread::sleep(Duration::from_millis(500));
        assert!(
            !up.is_finished() && is_mounted(&place.mount()),
            "what a supervisor keeps is not cleaned away"
        );
        above.kill().and_then(|()| above.wait()).expect("bash");
        up.join().expect("up")
    });
    assert!(said.contains("unmounted the dead kosfs mount") && said.contains("kosfs is up"), "{said}");
    assert_eq!(place.read("file"), b"words");

    place.kill();
    let mut above = alone(&place);
    let reaped = thread::spawn(move || above.wait().expect("bash").code());
    let said = place.expect(&["down"], 1);
    assert!(said.contains("without saying that all is flushed"), "{said}");
    assert_eq!(reaped.join().expect("bash"), Some(0), "asked to, and not killed");
    place.is_gone();
}
