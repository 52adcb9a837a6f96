//! The ways of speaking with the kernel beside each other in one run, by turns, and beside tmpfs and bindfs, which stores nothing itself.
//!
//! Clients are processes: this program, started again as `kos-bench client`. Each makes ready, says so, waits for a line,
//! works, says so, and gives its median.

mod rows;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kos_tests::{Daemon, Rng, is_mounted, wait_for};
use rustix::mount::{UnmountFlags, unmount};

use crate::work::SCALE;
use crate::{cpu_of, is_wanted, keep_in_memory};
use rows::{Client, ROWS, SHARED_BYTES};

/// The first argument of a client.
pub(crate) const CLIENT: &str = "client";
/// As `KOS_SESSION` has them; all others are measured by the first.
const SESSIONS: [&str; 3] = ["fuser", "dev", "uring"];
/// Memory tier of each node.
const RAM_BYTES: u64 = 512 << 20;
/// Each number is of so many runs.
const ROUNDS: usize = 9;

/// The other end of [`Started`]: arguments are a row's number, the directory, the client's number and how many there are.
pub(crate) fn client(arguments: &[String]) {
    let [row, dir, number, clients] = arguments else { panic!("clients are started by the bench") };
    let (row, dir) = (&ROWS[row.parse::<usize>().expect("a row")], Path::new(dir));
    let client = Client {
        shared: dir.join("shared"),
        own: dir.join(format!("client-{number}")),
        number: number.parse().expect("a number"),
        amount: row.amount / *SCALE / clients.parse::<u64>().expect("a number"),
    };
    fs::create_dir(&client.own).expect("mkdir");
    let mut operation = (row.begin)(&client);
    let mut took = vec![Duration::ZERO; client.amount as usize];
    let mut input = io::stdin().lines();
    println!("ready");
    input.next().expect("a line").expect("a line");
    for (i, took) in took.iter_mut().enumerate() {
        let start = Instant::now();
        operation(i as u64);
        *took = start.elapsed();
    }
    println!("done");
    // All are done before the first clears away, which nobody measures.
    input.next();
    drop(operation);
    fs::remove_dir_all(&client.own).expect("clean");
    took.sort_unstable();
    println!("{}", took[took.len() / 2].as_nanos());
}

/// A client that is ready.
struct Started {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Started {
    fn new(row: usize, dir: &Path, number: u64, clients: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args([CLIENT, &row.to_string()])
            .arg(dir)
            .args([number, clients].map(|n| n.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("client");
        let input = child.stdin.take().expect("stdin");
        let output = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, input, output }
    }

    fn begin(&mut self) {
        self.input.write_all(b"\n").expect("client");
    }

    fn expect(&mut self, said: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("client");
        assert_eq!(line.trim_end(), said, "a client failed");
    }

    /// Its median in seconds.
    fn end(mut self) -> f64 {
        drop(self.input);
        let mut median = String::new();
        self.output.read_to_string(&mut median).expect("client");
        assert!(self.child.wait().expect("client").success(), "a client failed");
        median.trim_end().parse::<f64>().expect("a number") / 1e9
    }
}

/// What is measured.
struct Place {
    name: &'static str,
    dir: PathBuf,
    /// The process that serves it, if one does.
    pid: Option<u32>,
}

/// All of one place, one for each round.
#[derive(Default)]
struct Samples {
    /// Seconds.
    elapsed: Vec<f64>,
    /// Seconds of CPU of the process that serves.
    cpu: Vec<f64>,
    /// Seconds of one operation, by the first client.
    single: Vec<f64>,
}

impl Samples {
    fn add(&mut self, row: usize, place: &Place, clients: u64) {
        let mut all: Vec<_> = (0..clients).map(|n| Started::new(row, &place.dir, n, clients)).collect();
        all.iter_mut().for_each(|client| client.expect("ready"));
        let cpu = || place.pid.map_or(0.0, cpu_of);
        let (start, before) = (Instant::now(), cpu());
        all.iter_mut().for_each(Started::begin);
        all.iter_mut().for_each(|client| client.expect("done"));
        self.elapsed.push(start.elapsed().as_secs_f64());
        self.cpu.push(cpu() - before);
        let singles: Vec<f64> = all.into_iter().map(Started::end).collect();
        self.single.push(singles[0]);
    }
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn line(name: &str, clients: u64, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    println!("| {name} | {clients} | {} |", cells.join(" | "));
}

/// The numbers of a row with what they are beside the first session's.
fn beside(numbers: &[f64], places: &[Place], decimals: usize) -> Vec<String> {
    let first = places.iter().position(|place| place.name == SESSIONS[0]).expect("a session");
    let cell = |(at, &n): (usize, &f64)| match at == first {
        true => format!("{n:.decimals$}"),
        false => format!("{n:.decimals$} ({:.2})", n / numbers[first]),
    };
    numbers.iter().enumerate().map(cell).collect()
}

fn measure(number: usize, clients: u64, places: &[Place]) {
    let row = &ROWS[number];
    let mut samples: Vec<Samples> = places.iter().map(|_| Samples::default()).collect();
    for round in 0..ROUNDS {
        // By turns, and not always in the same order.
        for at in 0..places.len() {
            let at = (at + round) % places.len();
            samples[at].add(number, &places[at], clients);
        }
    }
    let amount = (row.amount / *SCALE / clients * clients) as f64;
    let each = amount * row.bytes.map_or(1.0, |bytes| bytes as f64 / 1e6);
    let rates: Vec<f64> = samples.iter().map(|s| each / median(&s.elapsed)).collect();
    // Their mean: the kernel's hundredths of a second are coarse for one round.
    let mean = |cpu: &[f64]| cpu.iter().sum::<f64>() / cpu.len() as f64 / amount * 1e6;
    let cpu: Vec<f64> = samples.iter().map(|s| mean(&s.cpu)).collect();
    let cpu = beside(&cpu, places, 1).into_iter().zip(places).filter(|(_, place)| place.pid.is_some());
    let unit = row.bytes.map_or("/s", |_| "MB/s");
    let name = format!("{}, {unit}", row.name);
    line(&name, clients, beside(&rates, places, 0).into_iter().chain(cpu.map(|(cell, _)| cell)));
    if row.is_latency && clients == 1 {
        let medians: Vec<f64> = samples.iter().map(|s| median(&s.single) * 1e6).collect();
        let empty = places.iter().filter(|place| place.pid.is_some()).map(|_| "-".to_owned());
        let name = format!("{}, median us", row.name);
        line(&name, clients, beside(&medians, places, 1).into_iter().chain(empty));
    }
}

/// bindfs over a directory.
struct Bindfs {
    child: Child,
    mount: PathBuf,
}

impl Bindfs {
    /// None where it is not installed.
    fn start(over: &Path, mount: PathBuf) -> Option<Self> {
        fs::create_dir(&mount).expect("mkdir");
        let child = Command::new("bindfs").args(["-f", "--multithreaded"]).arg(over).arg(&mount).spawn();
        if child.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return None;
        }
        let started = Self { child: child.expect("bindfs"), mount };
        wait_for("bindfs", || is_mounted(&started.mount));
        Some(started)
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        // It ends by itself then; where it was not mounted, it is ended.
        if unmount(&self.mount, UnmountFlags::DETACH).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A node with one session, and where its files are in memory; None where there is no such session.
fn node(session: &'static str) -> Option<(Daemon, Place)> {
    let mut daemon = Daemon::unstarted(RAM_BYTES);
    daemon.env.push(("KOS_SESSION".to_owned(), session.to_owned()));
    daemon.spawn();
    if daemon.log().contains("no io_uring") {
        return None;
    }
    let dir = daemon.mem().join("memory");
    keep_in_memory(&dir);
    let place = Place { name: session, dir, pid: Some(daemon.pid()) };
    Some((daemon, place))
}

/// The table, of the rows that are wanted: `KOS_BENCH_ONLY=session` is all of them.
pub(crate) fn table() {
    let is_row_wanted = |row: &usize| is_wanted(&format!("session {}", ROWS[*row].name));
    let wanted: Vec<usize> = (0..ROWS.len()).filter(is_row_wanted).collect();
    if wanted.is_empty() {
        return;
    }
    let scratch = PathBuf::from("/dev/shm").join(format!("kos-bench-{}", std::process::id()));
    let tmpfs = scratch.join("tmpfs");
    fs::create_dir_all(&tmpfs).expect("tmpfs at /dev/shm");
    let bindfs = Bindfs::start(&tmpfs, scratch.join("bindfs"));
    let mut places = vec![Place { name: "tmpfs", dir: tmpfs, pid: None }];
    places.extend(bindfs.as_ref().map(|bindfs| Place {
        name: "bindfs",
        dir: bindfs.mount.clone(),
        pid: Some(bindfs.child.id()),
    }));
    let mut nodes = Vec::new();
    for (node, place) in SESSIONS.into_iter().filter_map(node) {
        nodes.push(node);
        places.push(place);
    }
    let data = Rng::new(4).bytes(SHARED_BYTES as usize);
    // bindfs shows the file of tmpfs.
    for place in places.iter().filter(|place| place.name != "bindfs") {
        let mut file = File::create(place.dir.join("shared")).expect("create");
        file.write_all(&data).and_then(|()| file.sync_all()).expect("write");
    }

    let lacks_ring = nodes.len() < SESSIONS.len();
    let without = if lacks_ring { "; io_uring is not offered here and left out" } else { "" };
    println!(
        "\n### Sessions with the kernel, class memory, by turns; in brackets: times {}'s; CPU of the process that serves, for one operation{without}\n",
        SESSIONS[0]
    );
    if bindfs.is_none() {
        println!("bindfs is not installed: it is left out.\n");
    }
    let names = || places.iter().map(|place| place.name.to_owned());
    let served = places.iter().filter(|place| place.pid.is_some());
    let cpu = served.map(|place| format!("CPU us: {}", place.name));
    let heads: Vec<String> = names().chain(cpu).collect();
    println!("| operation | clients | {} |\n|---|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for row in wanted {
        measure(row, 1, &places);
        measure(row, 4, &places);
    }
    drop(bindfs);
    fs::remove_dir_all(scratch).expect("clean");
}
