//! `make bench`: each path of the mount beside a reference in the same run, as ratios,
//! CPU-seconds per GiB and the daemon's peak of memory; and the sessions with the kernel beside each other. Nothing here passes or fails.

mod sessions;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kos_tests::Daemon;
use work::{Kind, Place, WORKS, Work};

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
    /// The daemon's peak of memory in bytes, of all rounds.
    memory: u64,
}

/// The peak of memory of a process since the last call.
fn peak_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    if let Err(e) = fs::write(format!("/proc/{pid}/clear_refs"), "5") {
        eprintln!("the peak of memory is that since the start: {e}");
    }
    kib.unwrap_or(0) * 1024
}

/// User and system seconds of a process.
fn cpu_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), the first two being before the bracket.
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn measure(work: &Work, place: &Place<'_>, daemon: Option<u32>) -> Sample {
    let pids: Vec<u32> = std::iter::once(std::process::id()).chain(daemon).collect();
    let cpu = || pids.iter().map(|&pid| cpu_of(pid)).sum::<f64>();
    let mut best: Option<Sample> = None;
    let mut memory = 0;
    daemon.map(peak_of);
    for _ in 0..ROUNDS {
        (work.prepare)(place);
        if work.cold {
            drop_caches();
        }
        let (start, before) = (Instant::now(), cpu());
        let counts = (work.run)(place);
        let sample =
            Sample { elapsed: counts.unwrap_or_else(|| start.elapsed()), cpu: cpu() - before, memory: 0 };
        memory = memory.max(daemon.map_or(0, peak_of));
        if best.is_none_or(|b| sample.elapsed < b.elapsed) {
            best = Some(sample);
        }
    }
    let best = best.unwrap_or(Sample { elapsed: Duration::ZERO, cpu: 0.0, memory: 0 });
    Sample { memory, ..best }
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
        Kind::Bytes => (work.amount)() as f64 / seconds / 1e6,
        Kind::Operations => (work.amount)() as f64 / seconds,
        Kind::Latency => seconds * 1e6,
    }
}

fn row(work: &Work, ours: Sample, reference: Sample) {
    let (a, b) = (rate(work, ours), rate(work, reference));
    let per_one = ours.cpu / (work.amount)() as f64;
    let (unit, ratio, cpu) = match work.kind {
        Kind::Bytes => ("MB/s", a / b, format!("{:.2}", per_one * (1_u64 << 30) as f64)),
        Kind::Operations => ("/s", a / b, format!("{:.0} us each", per_one * 1e6)),
        // Of speeds, as the others: above 1 is better.
        Kind::Latency => ("us", b / a, "-".to_owned()),
    };
    let memory = ours.memory >> 20;
    println!("| {} | {a:.0} {unit} | {b:.0} {unit} | {ratio:.2} | {cpu} | {memory} MiB |", work.name);
}

/// KOS_BENCH_ONLY=TEXT: only the rows with this in their name; those that read need the one that writes.
fn is_wanted(name: &str) -> bool {
    std::env::var("KOS_BENCH_ONLY").map_or(true, |only| name.contains(&only))
}

/// `percent`: what the reference writes for each byte that kosfs is given.
fn table(title: &str, ours: &Path, reference: &Path, percent: u64, pid: u32) {
    println!("\n### {title}\n");
    println!("| path | kosfs | reference | ratio | CPU-s/GiB | memory |\n|---|---|---|---|---|---|");
    let (ours, reference) = (Place { dir: ours, percent: 100 }, Place { dir: reference, percent });
    for work in WORKS.iter().filter(|work| is_wanted(work.name)) {
        row(work, measure(work, &ours, Some(pid)), measure(work, &reference, None));
    }
}

/// Make a directory of class memory.
fn keep_in_memory(dir: &Path) {
    fs::create_dir(dir).expect("mkdir");
    let set = Command::new("setfattr").args(["-n", "user.kos.durability", "-v", "memory"]).arg(dir).status();
    assert!(set.expect("setfattr").success(), "setfattr");
}

/// Both classes beside what they lie on.
fn classes() {
    let daemon = Daemon::with_ram(RAM_BYTES);
    let pid = daemon.pid();
    let memory = daemon.mem().join("memory");
    keep_in_memory(&memory);
    let tmpfs = PathBuf::from("/dev/shm").join(format!("kos-bench-{}", std::process::id()));
    fs::create_dir(&tmpfs).expect("tmpfs at /dev/shm");
    table("Class memory beside tmpfs", &memory, &tmpfs, 100, pid);
    fs::remove_dir_all(&tmpfs).expect("clean");

    let disk = daemon.mem().join("disk");
    fs::create_dir(&disk).expect("mkdir");
    let plain = daemon.state().with_file_name("plain");
    fs::create_dir(&plain).expect("mkdir");
    table(
        "Class disk beside the filesystem of the state, which writes 1.5 times the bytes",
        &disk,
        &plain,
        150,
        pid,
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((sessions::CLIENT, rest)) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return sessions::client(rest);
    }
    if WORKS.iter().any(|work| is_wanted(work.name)) {
        classes();
    }
    sessions::table();
}
