//! Power cuts under load: the state is on a filesystem that loses, tears and reorders what was not
//! synced. Everything acked is there to the byte, every file is one of its versions, and the node
//! comes up by itself. A disk or a build without fsync must fail the same test.

mod audit;
mod chores;
mod faults;
#[path = "../../../fabricd/core/tests/suite/invariants.rs"]
mod invariants;
mod kills;
mod leaks;
mod load;
mod track;
mod unnamed;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use audit::Audit;
use kos_tests::power::{Cut, Disk, PowerFs};
use kos_tests::{Daemon, Rng, binary, faulty_daemon, is_mounted, mark_state, seed};
use load::{KINDS, Kind, Worker};
use rustix::fs::XattrFlags;
use rustix::mount::{UnmountFlags, unmount};

const DISK_BYTES: u64 = 2 << 30;
/// Nobody says stop but the power.
static ON: AtomicBool = AtomicBool::new(false);

/// Cuts in one run; the soak asks for more.
fn cuts() -> u64 {
    std::env::var("KOS_CUTS").map_or(5, |n| n.parse().expect("KOS_CUTS: a number"))
}

/// A node whose disk can lose its power.
struct Machine {
    // Ends before its disk does.
    daemon: Daemon,
    power: PowerFs,
}

impl Machine {
    fn start(ram_bytes: u64) -> Self {
        let mut machine = Self::unstarted(ram_bytes);
        machine.daemon.spawn();
        machine
    }

    fn unstarted(ram_bytes: u64) -> Self {
        let daemon = Daemon::unstarted(ram_bytes);
        let power = PowerFs::mount(&daemon.state(), Disk::new(DISK_BYTES));
        mark_state(&daemon.state());
        Self { daemon, power }
    }

    /// Everything ends at once; answers the disk as it was then.
    fn power_off(&mut self) -> Disk {
        let off = self.power.cut_power();
        self.daemon.kill();
        if is_mounted(&self.daemon.ram()) {
            unmount(self.daemon.ram(), UnmountFlags::DETACH).expect("memory does not survive");
        }
        off
    }

    fn power_on(&mut self, off: &Disk, cut: Cut, rng: &mut Rng) -> Result<(), String> {
        self.power.restart(off, cut, rng);
        self.daemon.try_spawn()
    }

    /// Free what is dead now.
    fn collect(&self) {
        let nodes = fs::read_dir(self.daemon.mount().join("nodes")).expect("nodes");
        let node = nodes.map(|node| node.expect("node").path()).next().expect("this node");
        fs::write(node.join("ctl"), "collect").expect("collect");
    }

    /// Free what is dead, end, and look at everything that is left.
    fn audit(&mut self) -> Audit {
        self.collect();
        self.daemon.stop();
        Audit::of(&self.daemon.state())
    }

    /// `kos status` ends with `health`: 0 is ok, 4 degraded.
    fn is(&self, health: i32) -> Result<(), String> {
        let status =
            Command::new(binary("kos")).arg("status").arg("--state").arg(self.daemon.state()).output();
        let status = status.expect("kos status");
        if status.status.code() != Some(health) {
            return Err(format!("kos status: {status:?}"));
        }
        Ok(())
    }
}

/// Every name below `dir` leads somewhere and every byte can be read.
fn walk(dir: &Path) -> Result<(), String> {
    let step = |e: std::io::Error| format!("{}: {e}", dir.display());
    for entry in fs::read_dir(dir).map_err(step)? {
        let entry = entry.map_err(step)?;
        let path = entry.path();
        if entry.file_type().map_err(step)?.is_dir() {
            walk(&path)?;
        } else {
            let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let len = entry.metadata().map_err(step)?.len();
            if bytes.len() as u64 != len {
                return Err(format!("{}: {} bytes of {len}", path.display(), bytes.len()));
            }
        }
    }
    Ok(())
}

/// One cut under load; an error tells what was lost.
fn round(machine: &mut Machine, workers: &mut [Worker], cut: Cut, rng: &mut Rng) -> Result<(), String> {
    let before: u64 = workers.iter().map(Worker::acks).sum();
    let off = std::thread::scope(|scope| {
        for worker in &mut *workers {
            scope.spawn(|| worker.run(&ON));
        }
        std::thread::sleep(Duration::from_millis(100 + rng.below(900)));
        machine.power_off()
    });
    let acks = workers.iter().map(Worker::acks).sum::<u64>() - before;
    println!("{cut:?}: {acks} acks, {} MiB on the disk", off.bytes_used() >> 20);
    machine.power_on(&off, cut, rng)?;
    workers.iter_mut().try_for_each(Worker::check)?;
    walk(&machine.daemon.mem())
}

fn workers(machine: &Machine, kinds: &[Kind], rng: &mut Rng) -> Vec<Worker> {
    let mem = machine.daemon.mem();
    let workers = kinds.iter().map(|&kind| Worker::new(kind, &mem, rng).expect("its directory")).collect();
    File::open(&mem).and_then(|dir| dir.sync_all()).expect("fsync");
    workers
}

#[test]
fn nothing_acked_is_lost_by_power_cuts() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::start(0);
    let mut workers = workers(&machine, &KINDS, &mut rng);
    for number in 0..cuts() {
        let cut = Cut::choose(&mut rng);
        if let Err(e) = round(&mut machine, &mut workers, cut, &mut rng).and_then(|()| machine.is(0)) {
            panic!("cut {number}, {cut:?}: {e}");
        }
    }
    assert!(workers.iter().all(|worker| worker.acks() > 0), "every program got an answer");
    println!("{:?}", machine.audit());
}

/// Whole files of class memory, each of one byte repeated, until the power goes.
fn fill(dir: &Path) {
    for number in 1.. {
        let write = || {
            let mut file = File::create(dir.join((number % 8).to_string()))?;
            file.write_all(&vec![(number % 255 + 1) as u8; 300_000])?;
            file.sync_all()
        };
        if write().is_err() {
            return;
        }
        // So slowly that the collector keeps the tier from overflowing to disk.
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_power_cut_takes_memory_and_shows_no_other_bytes() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::start(256 << 20);
    let mut workers = [Worker::new(Kind::Overwrite, &machine.daemon.mem(), &mut rng).expect("directory")];
    let dir = machine.daemon.mem().join("memory");
    fs::create_dir(&dir).expect("mkdir");
    let class = rustix::fs::setxattr(&dir, "user.kos.durability", b"memory", XattrFlags::empty());
    class.expect("setxattr");
    File::open(machine.daemon.mem()).and_then(|mem| mem.sync_all()).expect("fsync");
    let mut lost = 0;
    for _ in 0..3 {
        let cut = Cut::choose(&mut rng);
        let off = std::thread::scope(|scope| {
            scope.spawn(|| fill(&dir));
            scope.spawn(|| workers[0].run(&ON));
            std::thread::sleep(Duration::from_millis(300 + rng.below(500)));
            machine.power_off()
        });
        machine.power_on(&off, cut, &mut rng).expect("the node is back");
        workers[0].check().expect("class disk loses nothing");
        let before = lost;
        for entry in fs::read_dir(&dir).expect("directory") {
            match fs::read(entry.expect("entry").path()) {
                Ok(bytes) => {
                    let first = bytes.first().copied().unwrap_or(1);
                    assert!(first != 0 && bytes.iter().all(|&b| b == first), "{cut:?}: not what was written");
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EIO), "{cut:?}: {e}");
                    lost += 1;
                }
            }
        }
        if lost > before {
            // As long as files name stripes that were in memory.
            machine.is(4).expect("degraded");
        }
    }
    assert!(lost > 0, "memory does not survive a power cut");
    fs::write(dir.join("new"), [7; 9000]).expect("write");
    assert!(fs::read(dir.join("new")).expect("read") == [7; 9000]);
    machine.daemon.stop();
}

#[test]
fn a_disk_that_ignores_fsync_fails_this_test() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::start(0);
    let mut workers = workers(&machine, &KINDS, &mut rng);
    machine.power.ignore_fsync();
    let lost = (0..5).find_map(|_| round(&mut machine, &mut workers, Cut::Pieces, &mut rng).err());
    println!("lost: {}", lost.expect("a loss is seen"));
}

#[test]
fn a_build_without_fsync_fails_this_test() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::unstarted(0);
    machine.daemon.program = faulty_daemon();
    machine.daemon.env = vec![("KOS_FAULTS".into(), "no-fsync".into())];
    machine.daemon.spawn();
    let mut workers = workers(&machine, &KINDS, &mut rng);
    let cuts = [Cut::Pieces, Cut::Prefix, Cut::Nothing];
    let lost = cuts.iter().find_map(|&cut| round(&mut machine, &mut workers, cut, &mut rng).err());
    println!("lost: {}", lost.expect("a loss is seen"));
}
