//! `kos up`, `down`, `status` and `sync` as a user types them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use kos_tests::{binary, is_mounted, wait_for};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, getsid, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A state and a mount of this test alone.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::Builder::new().prefix("kos-cli").tempdir().expect("temporary directory") }
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn mount(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    fn kos(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary("kos"));
        command.args(args).env_remove("KOS_STATE").env_remove("KOS_MOUNT").arg("--state").arg(self.state());
        if args.first() == Some(&"up") {
            command.arg("--mount").arg(self.mount()).args(["--tier-ram", "64M"]);
        }
        command.output().expect("kos")
    }

    /// Run it and expect this exit code; answers all it said.
    fn expect(&self, args: &[&str], code: i32) -> String {
        let out = self.kos(args);
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "kos {args:?}: {said}");
        said
    }

    fn pid(&self) -> Option<Pid> {
        let run = fs::read(self.state().join("run.json")).ok()?;
        let run: Value = serde_json::from_slice(&run).expect("json");
        Pid::from_raw(i32::try_from(run["pid"].as_i64()?).ok()?)
    }

    fn alive(pid: Pid) -> bool {
        PathBuf::from(format!("/proc/{}/exe", pid.as_raw_nonzero())).read_link().is_ok()
    }

    /// kill -9 the daemon, and wait for its end.
    fn kill(&self) {
        let pid = self.pid().expect("running");
        kill_process(pid, Signal::KILL).expect("kill");
        wait_for("the end", || !Self::alive(pid));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let command =
                fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            if command.contains(&*self.state().to_string_lossy()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for dir in [self.mount(), self.state().join("ram")] {
            if is_mounted(&dir) {
                let _ = unmount(dir, UnmountFlags::DETACH);
            }
        }
    }
}

#[test]
fn up_and_down_keep_the_data_and_may_be_repeated() {
    let place = Place::new();
    place.expect(&["status"], 3);
    place.expect(&["sync"], 3);
    place.expect(&["up"], 0);
    place.expect(&["up"], 0);
    fs::write(place.mount().join("mem/file"), b"not synced").expect("write");
    place.expect(&["sync"], 0);
    place.expect(&["down"], 0);
    assert!(!place.mount().exists(), "a directory that up made goes again");
    assert!(!is_mounted(&place.state().join("ram")), "memory is given back");
    place.expect(&["down"], 3);
    fs::create_dir(place.mount()).expect("mkdir");
    place.expect(&["up"], 0);
    assert_eq!(fs::read(place.mount().join("mem/file")).expect("read"), b"not synced");
    place.expect(&["down"], 0);
    assert!(place.mount().exists(), "a directory that was there stays");
    place.expect(&["down", "--wipe"], 0);
    assert!(!place.state().join("meta").exists());
}

#[test]
fn status_says_what_was_promised() {
    let place = Place::new();
    let parse = |text: String| -> Value { serde_json::from_str(&text).expect("json") };
    assert_eq!(parse(place.expect(&["status", "--json"], 3))["health"], "down");
    place.expect(&["up"], 0);
    let status = parse(place.expect(&["status", "--json"], 0));
    let keys = ["mount_source", "nodes_up", "leader", "leader_pid"];
    let counts = ["under_replicated_stripes", "under_spread_stripes"];
    assert!(keys.into_iter().chain(counts).all(|key| !status[key].is_null()), "{status}");
    assert_eq!((&status["health"], &status["nodes"][0]["state"]), (&Value::from("ok"), &Value::from("up")));
    assert_eq!(status["mounts"][0]["dir"], Value::from(place.mount().to_string_lossy()));
    let pid = place.pid().expect("running");
    assert_eq!(status["mounts"][0]["pid"], Value::from(pid.as_raw_nonzero().get()));
    assert_eq!(getsid(Some(pid)).expect("session"), pid, "a session of its own");
    let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).expect("cmdline");
    assert!(command.contains(&format!("\0--state\0{}\0", place.state().display())), "{command}");
    assert!(place.state().join("log/fabricd.log").exists());
    place.expect(&["down"], 0);
}

#[test]
fn up_cleans_up_after_a_kill() {
    let place = Place::new();
    place.expect(&["up"], 0);
    let path = place.mount().join("mem/file");
    fs::write(&path, b"synced").expect("write");
    place.expect(&["sync"], 0);
    place.kill();
    assert!(is_mounted(&place.mount()), "the dead mount is still there");
    place.expect(&["status"], 3);
    let said = place.expect(&["up"], 0);
    assert!(said.lines().count() > 1, "it says that it cleaned up: {said}");
    assert_eq!(fs::read(&path).expect("read"), b"synced");
    place.kill();
    place.expect(&["down"], 0);
    assert!(!is_mounted(&place.mount()));
    place.expect(&["down", "--wipe"], 0);
    assert!(!is_mounted(&place.state().join("ram")));
}

#[test]
fn what_is_not_ours_is_refused_by_name() {
    let place = Place::new();
    let mnt = place.mount();
    fs::create_dir(&mnt).expect("mkdir");
    fs::write(mnt.join("theirs"), b"x").expect("write");
    let said = place.expect(&["up"], 1);
    assert!(said.contains(&*mnt.to_string_lossy()), "{said}");
    fs::remove_file(mnt.join("theirs")).expect("remove");
    mount("none", &mnt, "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    let said = place.expect(&["up"], 1);
    unmount(&mnt, UnmountFlags::empty()).expect("unmount");
    assert!(said.contains("tmpfs"), "{said}");
    fs::create_dir_all(place.state()).expect("mkdir");
    fs::write(place.state().join("theirs"), b"x").expect("write");
    let said = place.expect(&["up"], 1);
    assert!(said.contains(&*place.state().to_string_lossy()), "{said}");
    assert!(place.state().join("theirs").exists());
}

#[test]
fn usage_errors_and_the_cluster() {
    let place = Place::new();
    place.expect(&["up", "--no-such-option"], 2);
    place.expect(&["up", "--tier-ram", "much"], 2);
    let said = place.expect(&["up", "--nodes", "2"], 1);
    assert!(said.contains("cluster"), "{said}");
    assert!(!place.state().join("run.json").exists());
}
