//! Mounts in threads, with real time: counters that each of them caches and adds to.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use kos_core::lease::{Limits, Refusal};
use kos_lease::{Holder, Keeper, Link, Log, Opened};
use kos_types::lease::{
    Cache, Epoch, GrantId, Held, Holds, Lane, Leases, Mode, Span, TREE, ToClient, ToLeader, Want,
};
use kos_types::{Ino, Result, SessionId};

/// Shorter than in use, so that a lost session is soon over.
const SHORT: Limits = Limits { ttl: 1_000_000, margin: 200_000, renew: 200_000, ..Limits::DEFAULT };
/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const COUNTERS: u64 = 3;

/// The log, and what the counters are committed as.
#[derive(Default)]
struct Fabric {
    epochs: Mutex<BTreeMap<SessionId, Epoch>>,
    values: Mutex<HashMap<Ino, u64>>,
    fences: AtomicU64,
}

impl Log for Fabric {
    fn fence(&self, session: SessionId) -> Result<Epoch> {
        self.fences.fetch_add(1, Ordering::SeqCst);
        let mut epochs = self.epochs.lock().expect("epochs");
        let epoch = epochs.get_mut(&session).expect("a known session");
        epoch.0 += 1;
        Ok(*epoch)
    }

    fn close(&self, _session: SessionId) -> Result<()> {
        Ok(())
    }
}

/// A counter in a mount's memory.
#[derive(Default, Clone, Copy)]
struct Cached {
    value: u64,
    /// What of it is not committed.
    added: u64,
}

struct Mount {
    fabric: Arc<Fabric>,
    keeper: Arc<Keeper>,
    holder: OnceLock<Arc<Holder>>,
    cells: Mutex<HashMap<Ino, Cached>>,
    /// Nothing goes in or out.
    cut: AtomicBool,
    up: Mutex<Sender<(SessionId, Epoch, ToLeader)>>,
    session: Mutex<Option<SessionId>>,
    discarded: AtomicU64,
    /// Throwing out waits, as the kernel does for a page that is being read.
    stuck: AtomicBool,
    /// For what it throws out.
    recall: Mutex<Option<GrantId>>,
}

/// What the holder sees of a mount.
struct Side(Arc<Mount>);

impl Mount {
    fn start(fabric: &Arc<Fabric>, keeper: &Arc<Keeper>, limits: Limits) -> Arc<Self> {
        let (up, arrived) = mpsc::channel();
        let mount = Arc::new(Self {
            fabric: Arc::clone(fabric),
            keeper: Arc::clone(keeper),
            holder: OnceLock::new(),
            cells: Mutex::default(),
            cut: AtomicBool::new(false),
            up: Mutex::new(up),
            session: Mutex::default(),
            discarded: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
            recall: Mutex::default(),
        });
        let keeper = Arc::clone(keeper);
        thread::spawn(move || {
            for (session, epoch, message) in arrived {
                keeper.receive(session, epoch, message);
            }
        });
        let side = Arc::new(Side(Arc::clone(&mount)));
        let (cache, link): (Arc<dyn Cache>, Arc<dyn Link>) = (Arc::clone(&side) as _, side);
        let holder = Arc::new(Holder::start(limits, cache, link).expect("threads"));
        assert!(mount.holder.set(holder).is_ok());
        mount
    }

    fn holder(&self) -> Arc<Holder> {
        loop {
            // The first session may be opened before the mount knows its holder.
            match self.holder.get() {
                Some(holder) => return Arc::clone(holder),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Wait for `work` done under a lease on a counter. Answers what it did, if the lease was kept.
    fn under<R: Send + 'static>(
        self: &Arc<Self>,
        ino: Ino,
        mode: Mode,
        work: impl FnOnce(&Self) -> R + Send + 'static,
    ) -> Option<R> {
        let (done, result) = mpsc::channel();
        let own = Arc::clone(self);
        let run = move |held: Result<Box<dyn Held>>| {
            let held = held.expect("granted in time");
            assert_eq!(held.admitted().is_some(), own.stuck.load(Ordering::SeqCst));
            let result = work(&own);
            done.send(held.end().then_some(result)).expect("somebody waits");
        };
        self.holder().when(&[Want::attr(ino, mode)], Holds::Pages(Span::ALL), PATIENCE, Box::new(run));
        result.recv_timeout(2 * PATIENCE).expect("it ends")
    }

    fn read(&self, ino: Ino) -> u64 {
        let mut cells = self.cells.lock().expect("cells");
        let committed = || self.fabric.values.lock().expect("values").get(&ino).copied().unwrap_or(0);
        cells.entry(ino).or_insert_with(|| Cached { value: committed(), added: 0 }).value
    }

    fn add(&self, ino: Ino) -> u64 {
        self.read(ino);
        let mut cells = self.cells.lock().expect("cells");
        let cell = cells.get_mut(&ino).expect("just read");
        cell.value += 1;
        cell.added += 1;
        cell.value
    }

    fn dirty(&self, ino: Ino) -> Option<Cached> {
        self.cells.lock().expect("cells").get(&ino).copied().filter(|cell| cell.added > 0)
    }

    /// Commit a counter if it may be.
    fn commit(&self, ino: Ino) {
        // Stamped before the value is read: a value of a lost session is not for the next one.
        while let Some(commit) = self.holder().commit(Want::attr(ino, Mode::Exclusive)) {
            let Some(cell) = self.dirty(ino) else { return };
            if self.cut.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let store = || {
                let old = self.fabric.values.lock().expect("values").insert(ino, cell.value).unwrap_or(0);
                assert!(old < cell.value, "{old} is not older than {}", cell.value);
            };
            match self.keeper.commit(&commit, store) {
                Ok(()) => {
                    if let Some(now) = self.cells.lock().expect("cells").get_mut(&ino) {
                        now.added -= cell.added;
                    }
                }
                Err(Refusal::Gone) => return,
                Err(Refusal::NotHeld | Refusal::Later) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn connect(self: &Arc<Self>, session: SessionId) {
        let (down, arrives) = mpsc::channel();
        let own = Arc::downgrade(self);
        thread::spawn(move || {
            for (epoch, message) in arrives {
                let Some(mount) = own.upgrade().filter(|mount| !mount.cut.load(Ordering::SeqCst)) else {
                    // A connection that lost a message is over.
                    return;
                };
                mount.holder().receive(epoch, message);
            }
        });
        self.keeper.connected(
            session,
            Box::new(move |epoch, message| {
                // A connection that is over loses what is sent.
                let _ = down.send((epoch, message));
            }),
        );
    }
}

impl Cache for Side {
    fn is_undivided(&self, _ino: Ino) -> bool {
        false
    }

    fn flush(&self, ino: Ino, _lane: Lane, _span: Span) {
        let all: Vec<Ino> = self.0.cells.lock().expect("cells").keys().copied().collect();
        all.into_iter().filter(|&one| ino == TREE || one == ino).for_each(|ino| self.0.commit(ino));
    }

    fn invalidate(&self, recall: GrantId, ino: Ino, lane: Lane, span: Span, mode: Mode) {
        *self.0.recall.lock().expect("recall") = Some(recall);
        while self.0.stuck.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        if mode == Mode::Exclusive {
            // What was let in meanwhile.
            self.flush(ino, lane, span);
        }
        self.0.cells.lock().expect("cells").retain(|&one, cell| cell.added > 0 || ino != TREE && one != ino);
    }

    fn abandon(&self) -> Vec<Ino> {
        let lost: Vec<_> =
            self.0.cells.lock().expect("cells").drain().filter(|cell| cell.1.added > 0).collect();
        self.0.discarded.fetch_add(lost.iter().map(|cell| cell.1.added).sum(), Ordering::SeqCst);
        lost.into_iter().map(|cell| cell.0).collect()
    }
}

impl Link for Side {
    fn send(&self, epoch: Epoch, message: ToLeader) {
        let session = *self.0.session.lock().expect("session");
        if let Some(session) = session.filter(|_| !self.0.cut.load(Ordering::SeqCst)) {
            self.0.up.lock().expect("up").send((session, epoch, message)).expect("the leader listens");
        }
    }

    fn open(&self) -> Result<Opened> {
        while self.0.cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(old) = self.0.session.lock().expect("session").take() {
            self.0.keeper.closed(old);
        }
        let session = {
            let mut epochs = self.0.fabric.epochs.lock().expect("epochs");
            let session = SessionId(epochs.len() as u64 + 1);
            epochs.insert(session, Epoch(1));
            session
        };
        self.0.keeper.opened(session, Epoch(1));
        self.0.connect(session);
        *self.0.session.lock().expect("session") = Some(session);
        Ok(Opened { session, epoch: Epoch(1), term: 1 })
    }
}

fn cluster(mounts: usize, limits: Limits) -> (Arc<Fabric>, Vec<Arc<Mount>>) {
    let fabric = Arc::new(Fabric::default());
    let keeper = Keeper::start(1, limits, None, Arc::clone(&fabric) as Arc<dyn Log>).expect("a thread");
    let keeper = Arc::new(keeper);
    let mounts = (0..mounts).map(|_| Mount::start(&fabric, &keeper, limits)).collect();
    (fabric, mounts)
}

/// Have everything committed, by reading it elsewhere.
fn settled(fabric: &Fabric, mounts: &[Arc<Mount>]) -> u64 {
    for mount in mounts {
        for ino in (1..=COUNTERS).map(Ino) {
            let read = mount.under(ino, Mode::Shared, move |mount| mount.read(ino));
            assert!(read.is_some(), "a session was lost");
        }
    }
    fabric.values.lock().expect("values").values().sum()
}

#[test]
fn counters_that_many_mounts_cache_lose_nothing_and_are_never_old() {
    const EACH: u64 = 300;
    let (fabric, mounts) = cluster(3, Limits::DEFAULT);
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..=COUNTERS).map(|_| AtomicU64::new(0)).collect());
    thread::scope(|scope| {
        for (nth, mount) in mounts.iter().enumerate() {
            for thread in 0..2 {
                let seen = Arc::clone(&seen);
                scope.spawn(move || {
                    for step in 0..EACH {
                        let ino = Ino(1 + (step * 7 + nth as u64 + thread) % COUNTERS);
                        let seen = &seen[ino.0 as usize];
                        let before = seen.load(Ordering::SeqCst);
                        let found = if step % 3 == 0 {
                            mount.under(ino, Mode::Shared, move |mount| mount.read(ino)).expect("kept")
                        } else {
                            mount.under(ino, Mode::Exclusive, move |mount| mount.add(ino)).expect("kept") - 1
                        };
                        assert!(found >= before, "counter {ino:?} was {before} and is {found}");
                        seen.fetch_max(found, Ordering::SeqCst);
                    }
                });
            }
        }
    });
    assert_eq!(settled(&fabric, &mounts), 3 * 2 * EACH * 2 / 3);
    assert_eq!(fabric.fences.load(Ordering::SeqCst), 0);
}

#[test]
fn a_mount_that_is_cut_off_is_fenced_and_comes_back() {
    let (fabric, mounts) = cluster(2, SHORT);
    let mut added = 0;
    let mut add = |mount: &Arc<Mount>, times: u64| {
        for _ in 0..times {
            // On a busy machine a session may end also by itself; then the addition is discarded.
            mount.under(Ino(1), Mode::Exclusive, |mount| mount.add(Ino(1)));
            added += 1;
        }
    };
    add(&mounts[1], 3);
    add(&mounts[0], 5);
    // What it has buffered now is not committed, and nobody hears of it any more.
    mounts[0].cut.store(true, Ordering::SeqCst);
    add(&mounts[1], 10);
    assert!(fabric.fences.load(Ordering::SeqCst) > 0);
    mounts[0].cut.store(false, Ordering::SeqCst);
    add(&mounts[0], 10);
    let settled = settled(&fabric, &mounts);
    let discarded: u64 = mounts.iter().map(|mount| mount.discarded.load(Ordering::SeqCst)).sum();
    assert!(discarded >= 5);
    assert_eq!(settled, added - discarded);
}

#[test]
fn what_is_let_in_during_a_recall_is_seen_by_who_recalled() {
    const INO: Ino = Ino(1);
    let (_fabric, mounts) = cluster(2, Limits::DEFAULT);
    let add = |mount: &Mount| mount.add(INO);
    // Whoever was first may have had the whole tree, whose recall is another one.
    assert_eq!(mounts[1].under(Ino(2), Mode::Exclusive, |mount| mount.add(Ino(2))), Some(1));
    assert_eq!(mounts[0].under(INO, Mode::Exclusive, add), Some(1));
    mounts[0].stuck.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let recaller = scope.spawn(|| mounts[1].under(INO, Mode::Exclusive, add));
        // Its first one is committed, and out of the cache as soon as the kernel lets it go.
        let committed = || mounts[0].dirty(INO).is_none();
        while !committed() {
            thread::sleep(Duration::from_millis(1));
        }
        let late = scope.spawn(|| mounts[0].under(INO, Mode::Exclusive, add));
        let start = Instant::now();
        let recall = || *mounts[0].recall.lock().expect("recall");
        while mounts[0].holder().admit(recall(), INO, Span::ALL) == 0 {
            assert!(start.elapsed() < PATIENCE, "there is one to let in");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(late.join().expect("no panic"), Some(2));
        assert!(!recaller.is_finished(), "the lease is not given back yet");
        mounts[0].stuck.store(false, Ordering::SeqCst);
        assert_eq!(recaller.join().expect("no panic"), Some(3));
    });
}

#[test]
fn a_recall_of_all_commits_what_each_has_buffered() {
    let (fabric, mounts) = cluster(3, Limits::DEFAULT);
    for (mount, ino) in mounts.iter().zip([1, 2, 3].map(Ino)) {
        assert_eq!(mount.under(ino, Mode::Exclusive, move |mount| mount.add(ino)), Some(1));
    }
    mounts[0].keeper.recall_all(false, PATIENCE).expect("they answer");
    assert_eq!(fabric.values.lock().expect("values").values().sum::<u64>(), 3);
    // They go on.
    assert_eq!(mounts[0].under(Ino(1), Mode::Exclusive, |mount| mount.add(Ino(1))), Some(2));
    mounts[1].keeper.recall_all(true, PATIENCE).expect("they answer");
    assert_eq!(fabric.values.lock().expect("values").values().sum::<u64>(), 4);
}

/// A leader that has just begun does not know what the sessions of the one before have buffered.
#[test]
fn a_recall_of_all_waits_for_sessions_that_have_not_come_back() {
    let fabric = Arc::new(Fabric::default());
    fabric.epochs.lock().expect("epochs").insert(SessionId(7), Epoch(1));
    let log = Arc::clone(&fabric) as Arc<dyn Log>;
    let keeper = Arc::new(Keeper::start(2, SHORT, [(SessionId(7), Epoch(1))], log).expect("a thread"));
    let (said, heard) = mpsc::channel();
    keeper.connected(SessionId(7), Box::new(move |_, message| said.send(message).expect("the test listens")));
    let say = |message| keeper.receive(SessionId(7), Epoch(1), message);
    thread::scope(|scope| {
        let all = scope.spawn(|| keeper.recall_all(false, PATIENCE));
        thread::sleep(Duration::from_millis(50));
        assert!(!all.is_finished(), "it may have something");
        say(ToLeader::Hello { sent: 0, held: vec![Want::attr(Ino(1), Mode::Exclusive)] });
        let recall = heard.iter().find_map(|message| match message {
            ToClient::Recall { id, .. } => Some(id),
            _ => None,
        });
        assert!(!all.is_finished());
        say(ToLeader::Ack { recall: recall.expect("a recall"), seq: 0 });
        all.join().expect("no panic").expect("over");
    });
    // One that does not come back has lost what it had.
    let log = Arc::clone(&fabric) as Arc<dyn Log>;
    let keeper = Keeper::start(3, SHORT, [(SessionId(7), Epoch(1))], log).expect("a thread");
    keeper.recall_all(false, PATIENCE).expect("over");
    assert!(fabric.fences.load(Ordering::SeqCst) > 0);
}
