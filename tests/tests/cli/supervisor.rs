//! The process that holds the daemon's mount: who it is, and that nothing of it is left behind.

use std::fs;
use std::os::unix::process::CommandExt;
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
