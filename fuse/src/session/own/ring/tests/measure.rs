//! The transports beside each other, by programs of their own. Not a test: it prints ratios.
//! `cargo test … -- --ignored --exact session::own::ring::tests::measure::transports --nocapture`

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::mounted::{Mounted, Transport, offered};
use super::{PAYLOAD_BYTES, SHAPE, Shape};

const FILE: &str = "KOS_FUSE_MEASURE_FILE";
const OPERATION: &str = "KOS_FUSE_MEASURE_OPERATION";
/// The beginning of the operations to measure; all of them without.
const ONLY: &str = "KOS_FUSE_MEASURE_ONLY";
const CLIENT: &str = "session::own::ring::tests::measure::client";
const TIME: Duration = Duration::from_millis(500);
const ROUNDS: usize = 3;
const OPERATIONS: [&str; 6] =
    ["fstat", "read 4 KiB", "read 1 MiB", "write 1 MiB", "read 1 MiB at 16", "write 1 MiB at 16"];

/// Operations per second, and seconds of all processors for each, programs included.
#[derive(Clone, Copy)]
struct Speed {
    rate: f64,
    cpu: f64,
}

/// User and system time of this process and its children, in clock ticks.
fn ticks() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    fields.split_whitespace().skip(11).take(4).map(|n| n.parse::<f64>().expect("a number")).sum()
}

fn measure(mounted: &Mounted, operation: &str, clients: usize) -> Speed {
    let start = ticks();
    let spawn = |_| {
        Command::new(std::env::current_exe().expect("own path"))
            .args(["--ignored", "--exact", CLIENT, "--nocapture", "--test-threads=1"])
            .env(FILE, mounted.path("f0"))
            .env(OPERATION, operation)
            .stdout(Stdio::piped())
            .spawn()
            .expect("client")
    };
    let clients: Vec<Child> = (0..clients).map(spawn).collect();
    let mut all = 0.0;
    for client in clients {
        let out = client.wait_with_output().expect("client").stdout;
        let out = String::from_utf8_lossy(&out).into_owned();
        let count = out.lines().find_map(|line| line.split_once("operations: ")).expect("a count").1;
        all += count.parse::<f64>().expect("a number");
    }
    Speed { rate: all / TIME.as_secs_f64(), cpu: (ticks() - start) / 100.0 / all }
}

#[test]
#[ignore = "no test: it is what the measurement starts"]
fn client() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let operation = std::env::var(OPERATION).expect("operation");
    let file = File::options().read(true).write(true).open(path).expect("open");
    let len = if operation.contains("MiB") { PAYLOAD_BYTES } else { 4096 };
    let mut memory = vec![0u8; len + 8192];
    // Of a page's beginning, or as far behind it as malloc's large pieces are: `PAYLOAD_AT` says why.
    let at = memory.as_ptr().align_offset(4096) + if operation.ends_with("at 16") { 16 } else { 0 };
    let page = &mut memory[at..at + len];
    let (start, mut count) = (Instant::now(), 0u64);
    while count % 16 != 0 || start.elapsed() < TIME {
        match &*operation {
            "fstat" => drop(file.metadata().expect("fstat")),
            _ if operation.starts_with("write") => file.write_all_at(page, 0).expect("write"),
            _ => file.read_exact_at(page, 0).expect("read"),
        }
        count += 1;
    }
    println!("operations: {count}");
}

#[test]
#[ignore = "no test: it takes minutes, and prints figures"]
fn transports() {
    if !offered() {
        return;
    }
    let ring = |depth| Transport::Ring(Shape { depth, ..SHAPE });
    let transports = [
        ("device, 4 threads", Transport::Device(4)),
        ("ring, depth 1", ring(1)),
        ("ring, depth 4", ring(4)),
        ("ring, depth 8", ring(8)),
    ];
    let only = std::env::var(ONLY).unwrap_or_default();
    for operation in OPERATIONS.into_iter().filter(|operation| operation.starts_with(&only)) {
        for clients in [1, 4] {
            let mut speeds: [Vec<Speed>; 4] = Default::default();
            for _ in 0..ROUNDS {
                for (at, (_, transport)) in transports.iter().enumerate() {
                    let mounted = Mounted::new(*transport, |prepared| prepared);
                    fs::write(mounted.path("f0"), vec![1; PAYLOAD_BYTES]).expect("write");
                    speeds[at].push(measure(&mounted, operation, clients));
                    mounted.end();
                }
            }
            let median = |at: usize, of: fn(&Speed) -> f64| {
                let mut all: Vec<f64> = speeds[at].iter().map(of).collect();
                all.sort_by(f64::total_cmp);
                all[ROUNDS / 2]
            };
            for (at, (name, _)) in transports.iter().enumerate() {
                let (rate, cpu) = (median(at, |speed| speed.rate), median(at, |speed| speed.cpu));
                println!(
                    "{operation}, {clients} clients, {name}: {rate:.0}/s, {:.2} of the device's, {:.1} us CPU, {:.2}",
                    rate / median(0, |speed| speed.rate),
                    cpu * 1e6,
                    cpu / median(0, |speed| speed.cpu),
                );
            }
        }
    }
}
