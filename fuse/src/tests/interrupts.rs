//! Programs that are killed while their requests take long.

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
