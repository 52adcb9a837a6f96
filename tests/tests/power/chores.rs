//! What a node does beside plain files while its power is cut: snapshots, jobs, compaction, scrub and collection. Each
//! keeps note of what it was promised and looks for it after the cut.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kos_tests::power::Cut;
use kos_tests::{Rng, seed, wait_for};

use crate::load::{Kind, Worker};
use crate::{Machine, ON, cuts, walk, workers};

/// Snapshots that are kept.
const SNAPSHOTS: usize = 4;
/// Jobs dropped between two cuts.
const JOBS: usize = 20;
const PAUSE: Duration = Duration::from_millis(30);

/// Everything that was answered before is on stable storage.
fn sync(mount: &Path) -> io::Result<()> {
    File::open(mount.join("mem"))?.sync_all()
}

/// Names in a directory.
fn names(dir: &Path) -> Result<BTreeSet<String>, String> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(entries.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[derive(Debug)]
struct Taken {
    name: String,
    /// What the file held.
    bytes: Vec<u8>,
    /// It is promised to be there.
    acked: bool,
    /// It is being dropped.
    dropped: bool,
}

/// A program that takes and drops snapshots of one file.
pub(crate) struct Snapshots {
    mount: PathBuf,
    rng: Rng,
    next: u64,
    all: Vec<Taken>,
    pub(crate) acks: u64,
}

impl Snapshots {
    pub(crate) fn new(mount: &Path, rng: &mut Rng) -> Self {
        Self { mount: mount.to_path_buf(), rng: Rng::new(rng.next()), next: 0, all: Vec::new(), acks: 0 }
    }

    fn file(&self) -> PathBuf {
        self.mount.join("mem/Snapshots")
    }

    pub(crate) fn run(&mut self) -> io::Result<()> {
        loop {
            self.next += 1;
            let len = self.rng.below(150_000) as usize;
            let (name, bytes) = (format!("s{}", self.next), self.rng.bytes(len));
            // Not flushed: a snapshot has what programs wrote.
            fs::write(self.file(), &bytes)?;
            let dir = self.mount.join("snap").join(&name);
            self.all.push(Taken { name, bytes, acked: false, dropped: false });
            fs::create_dir(dir)?;
            if self.all.len() > SNAPSHOTS {
                let old = &mut self.all[0];
                old.dropped = true;
                fs::remove_dir(self.mount.join("snap").join(&old.name))?;
            }
            if self.rng.below(2) == 0 || self.all.len() > 2 * SNAPSHOTS {
                sync(&self.mount)?;
                self.all.retain(|taken| !taken.dropped);
                self.all.iter_mut().for_each(|taken| taken.acked = true);
                self.acks += 1;
            }
        }
    }

    pub(crate) fn check(&mut self) -> Result<(), String> {
        let mut there = names(&self.mount.join("snap"))?;
        for taken in std::mem::take(&mut self.all) {
            let path = self.mount.join("snap").join(&taken.name).join("Snapshots");
            if !there.remove(&taken.name) {
                if taken.acked && !taken.dropped {
                    return Err(format!("snapshot {} is lost", taken.name));
                }
                continue;
            }
            let found = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            if found != taken.bytes {
                return Err(format!("snapshot {} is of another time", taken.name));
            }
            self.all.push(Taken { acked: true, dropped: false, ..taken });
        }
        if there.is_empty() { Ok(()) } else { Err(format!("snapshots that were dropped: {there:?}")) }
    }
}

/// A program that drops jobs.
pub(crate) struct Jobs {
    mount: PathBuf,
    next: u64,
    /// Names since the last cut, and whether each is promised to be there.
    dropped: Vec<(String, bool)>,
    pub(crate) acks: u64,
    pub(crate) done: u64,
}

impl Jobs {
    pub(crate) fn new(mount: &Path) -> io::Result<Self> {
        fs::create_dir(mount.join("mem/Jobs"))?;
        sync(mount)?;
        Ok(Self { mount: mount.to_path_buf(), next: 0, dropped: Vec::new(), acks: 0, done: 0 })
    }

    pub(crate) fn run(&mut self) -> io::Result<()> {
        for _ in 0..JOBS {
            self.next += 1;
            let name = format!("job{}", self.next);
            // The line says that it was begun, the result that it ended.
            let script = format!(
                "#!/bin/sh\necho begun >> \"$KOS_MOUNT\"/mem/Jobs/{name}\necho {name} > \"$KOS_RESULT\"/out\n"
            );
            self.dropped.push((name.clone(), false));
            fs::write(self.mount.join("jobs").join(&name), script)?;
            if self.next.is_multiple_of(2) {
                sync(&self.mount)?;
                self.dropped.iter_mut().for_each(|job| job.1 = true);
                self.acks += 1;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    pub(crate) fn check(&mut self) -> Result<(), String> {
        let there = names(&self.mount.join("jobs/by-name"))?;
        for (name, acked) in std::mem::take(&mut self.dropped) {
            if !there.contains(&name) {
                // Dropped in part, a refused file, or nothing.
                if acked {
                    return Err(format!("{name} is lost"));
                }
                continue;
            }
            let dir = self.mount.join("jobs/by-name").join(&name);
            let status =
                |what: &str| fs::read_to_string(dir.join(what)).map_err(|e| format!("{name}/{what}: {e}"));
            // What was not begun is begun now.
            wait_for("the job's end", || {
                status("status")
                    .is_ok_and(|text| !text.contains("\"ready\"") && !text.contains("\"running\""))
            });
            let text = status("status")?;
            if text.contains("state = \"done\"") {
                self.done += 1;
                if status("result/out")? != format!("{name}\n") {
                    return Err(format!("{name} is done and its result is {:?}", status("result/out")));
                }
            } else if !text.contains("state = \"lost\"") {
                return Err(format!("{name}: {text}"));
            }
            let begun = fs::read_to_string(self.mount.join("mem/Jobs").join(&name)).unwrap_or_default();
            if begun.lines().count() > 1 {
                return Err(format!("{name} was begun {} times", begun.lines().count()));
            }
        }
        Ok(())
    }
}

/// Have the node do all it does in the background, again and again, until the power goes.
fn toil(ctl: &Path) {
    while fs::write(ctl, "compact\nscrub\ncollect\n").is_ok() {
        std::thread::sleep(PAUSE);
    }
}

/// Scattered small writes, so that there is something to compact.
fn scatter(path: &Path, rng: &mut Rng) -> io::Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    loop {
        for _ in 0..20 {
            let len = 5000 + rng.below(3000) as usize;
            file.write_all_at(&rng.bytes(len), rng.below(1 << 20))?;
            file.sync_data()?;
        }
        file.set_len(rng.below(1 << 20))?;
    }
}

#[test]
fn snapshots_jobs_and_attributes_survive_power_cuts_while_the_node_tidies_up() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::start(0);
    let kinds = [Kind::Overwrite, Kind::Replace, Kind::Names, Kind::Attributes];
    let mut workers = workers(&machine, &kinds, &mut rng);
    let mount = machine.daemon.mount();
    let mut snapshots = Snapshots::new(&mount, &mut rng);
    let mut jobs = Jobs::new(&mount).expect("mkdir");
    let node = names(&mount.join("nodes")).expect("nodes").pop_first().expect("this node");
    let ctl = mount.join("nodes").join(node).join("ctl");
    for number in 0..cuts() {
        let (cut, mut scattered) = (Cut::choose(&mut rng), Rng::new(rng.next()));
        let off = std::thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| worker.run(&ON));
            }
            // Each ends with the error that the power's end is.
            scope.spawn(|| snapshots.run());
            scope.spawn(|| jobs.run());
            scope.spawn(|| scatter(&mount.join("mem/scattered"), &mut scattered));
            scope.spawn(|| toil(&ctl));
            std::thread::sleep(Duration::from_millis(200 + rng.below(1300)));
            machine.power_off()
        });
        let checked = machine
            .power_on(&off, cut, &mut rng)
            .and_then(|()| workers.iter_mut().try_for_each(Worker::check))
            .and_then(|()| snapshots.check())
            .and_then(|()| jobs.check())
            .and_then(|()| walk(&machine.daemon.mem()))
            .and_then(|()| machine.is(0));
        checked.unwrap_or_else(|e| panic!("cut {number}, {cut:?}: {e}"));
    }
    println!("{} snapshots acked, {} jobs acked, {} done", snapshots.acks, jobs.acks, jobs.done);
    assert!(snapshots.acks > 0 && jobs.acks > 0 && jobs.done > 0, "each program got an answer");
    assert!(workers.iter().all(|worker| worker.acks() > 0), "every program got an answer");
    for name in names(&mount.join("snap")).expect("snapshots") {
        fs::remove_dir(mount.join("snap").join(name)).expect("rmdir");
    }
    println!("{:?}", machine.audit());
}
