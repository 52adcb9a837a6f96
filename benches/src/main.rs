//! `make bench`: each path of the mount beside a reference in the same run, as ratios and
//! CPU-seconds per GiB. Nothing here passes or fails.

mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kos_tests::Daemon;
use work::{Kind, WORKS, Work};

/// Memory tier of the benchmark's node.
const RAM_BYTES: u64 = 3 << 30;
/// Each number is the best of so many.
const ROUNDS: usize = 3;
/// The kernel counts process times in these.
const TICKS_PER_SECOND: f64 = 100.0;

/// What one run took.
#[derive(Clone, Copy)]
struct Sample {
    elapsed: Duration,
    /// Seconds of CPU: this process and the daemon.
    cpu: f64,
}

/// User and system seconds of a process.
fn cpu_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), the first two being before the bracket.
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn measure(work: &Work, dir: &Path, daemon: Option<u32>) -> Sample {
    let pids: Vec<u32> = std::iter::once(std::process::id()).chain(daemon).collect();
    let cpu = || pids.iter().map(|&pid| cpu_of(pid)).sum::<f64>();
    let mut best: Option<Sample> = None;
    for _ in 0..ROUNDS {
        (work.prepare)(dir);
        if work.cold {
            drop_caches();
        }
        let (start, before) = (Instant::now(), cpu());
        (work.run)(dir);
        let sample = Sample { elapsed: start.elapsed(), cpu: cpu() - before };
        if best.is_none_or(|b| sample.elapsed < b.elapsed) {
            best = Some(sample);
        }
    }
    best.unwrap_or(Sample { elapsed: Duration::ZERO, cpu: 0.0 })
}

fn drop_caches() {
    if let Err(e) = fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("caches stay warm: {e}");
    }
}

/// A number in the work's unit.
fn rate(work: &Work, sample: Sample) -> f64 {
    let seconds = sample.elapsed.as_secs_f64().max(1e-9);
    match work.kind {
        Kind::Bytes => work.amount as f64 / seconds / 1e6,
        Kind::Operations => work.amount as f64 / seconds,
    }
}

fn row(work: &Work, ours: Sample, reference: Sample) {
    let (unit, cpu) = match work.kind {
        Kind::Bytes => ("MB/s", format!("{:.2}", ours.cpu / (work.amount as f64 / (1_u64 << 30) as f64))),
        Kind::Operations => ("/s", "-".to_owned()),
    };
    let (a, b) = (rate(work, ours), rate(work, reference));
    println!("| {} | {a:.0} {unit} | {b:.0} {unit} | {:.2} | {cpu} |", work.name, a / b);
}

fn table(title: &str, ours: &Path, reference: &Path, pid: u32) {
    println!("\n### {title}\n\n| path | kosfs | reference | ratio | CPU-s/GiB |\n|---|---|---|---|---|");
    for work in &WORKS {
        row(work, measure(work, ours, Some(pid)), measure(work, reference, None));
    }
}

fn main() {
    let daemon = Daemon::with_ram(RAM_BYTES);
    let run = fs::read_to_string(daemon.state().join("run.json")).expect("run.json");
    let pid = run.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
    let pid: u32 = pid.and_then(|pid| pid.parse().ok()).expect("a pid");

    let memory = daemon.mem().join("memory");
    fs::create_dir(&memory).expect("mkdir");
    let set =
        Command::new("setfattr").args(["-n", "user.kos.durability", "-v", "memory"]).arg(&memory).status();
    assert!(set.expect("setfattr").success(), "setfattr");
    let tmpfs = PathBuf::from("/dev/shm").join(format!("kos-bench-{}", std::process::id()));
    fs::create_dir(&tmpfs).expect("tmpfs at /dev/shm");
    table("Class memory beside tmpfs", &memory, &tmpfs, pid);
    fs::remove_dir_all(&tmpfs).expect("clean");

    let disk = daemon.mem().join("disk");
    fs::create_dir(&disk).expect("mkdir");
    let plain = daemon.state().with_file_name("plain");
    fs::create_dir(&plain).expect("mkdir");
    table("Class disk beside the filesystem that holds the state", &disk, &plain, pid);
}
