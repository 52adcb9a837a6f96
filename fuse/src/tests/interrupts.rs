//! Programs whose requests take long: they are killed, and others wait beside them.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Rng;
use super::live::Live;

/// A read takes so long.
const SLOW: Duration = Duration::from_secs(40);
/// A killed program is gone long before.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_killed_reader_of_a_slow_file_dies_at_once() {
    let mut live = Live::by("dev");
    let bytes = Rng::seeded(1).bytes(100_000);
    fs::write(live.path("file"), &bytes).expect("write");
    live.remount();
    live.ask(&format!("slow {}", SLOW.as_millis()));
    let mut reader = Command::new("cat").arg(live.path("file")).stdout(Stdio::null()).spawn().expect("cat");
    thread::sleep(Duration::from_millis(500));
    assert!(reader.try_wait().expect("wait").is_none(), "it reads");
    reader.kill().expect("kill");
    let killed = Instant::now();
    while reader.try_wait().expect("wait").is_none() {
        assert!(killed.elapsed() < SOON, "it waits for its answer");
        thread::sleep(Duration::from_millis(10));
    }
    live.ask("slow 0");
    assert!(fs::read(live.path("file")).expect("read") == bytes);
    assert!(live.ended());
}

/// By io_uring one thread serves all programs of a processor.
#[test]
fn who_reads_what_is_cold_holds_others_up_once_at_most() {
    let mut live = Live::by("uring");
    fs::write(live.path("cold"), Rng::seeded(2).bytes(100_000)).expect("write");
    live.remount();
    live.ask("slow 2000");
    let on_first_processor = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let cold = format!("if={}", live.path("cold").display());
    let read = || on_first_processor("dd", &[&cold, "bs=4096", "count=1", "iflag=direct"]);
    assert!(read().status().expect("dd").success());
    let mut reader = read().spawn().expect("dd");
    thread::sleep(Duration::from_millis(300));
    let absent = live.path("absent").display().to_string();
    assert!(!on_first_processor("test", &["-e", &absent]).status().expect("test").success());
    assert!(reader.try_wait().expect("wait").is_none(), "the other one waited for it");
    assert!(reader.wait().expect("wait").success());
    live.ask("slow 0");
    assert!(live.ended());
}
