//! Locks of the programs of this mount, which the fabric keeps: those of fcntl(2), and of flock(2) where the session tells
//! them apart. Those who wait hold no thread of the session: their answers are kept until the fabric grants, or until a
//! signal is pending.

mod record;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_types::{Error, Fabric, FileLock, Ino, Kind, LockAnswer, Result};

use self::record::Record;
use crate::arena::Arena;
use crate::signals::{self, Signals};

/// Requests that wait at once.
const WAITERS_MAX: usize = 1024;
/// Time between looks for signals.
const PERIOD: Duration = Duration::from_millis(200);

/// Answers one request.
pub(crate) type Deliver = Box<dyn FnOnce(Result<LockAnswer>) + Send>;

struct Waiter {
    request: u64,
    ino: Ino,
    handle: u64,
    lock: FileLock,
    /// It waits for what others hold, and not only until that is known.
    waits: bool,
    who: signals::Waiter,
    deliver: Deliver,
}

impl Waiter {
    fn ask<F: Fabric>(&self, fabric: &F) -> Result<LockAnswer> {
        fabric.set_lock(self.ino, &self.lock, self.waits.then_some(self.request))
    }
}

/// Who may hold a lock: file, owner, the open file it came through, and whether it is one of flock(2).
type Owner = (Ino, u64, u64, bool);

/// The locks of one mount, as far as it must know of them.
pub(crate) struct Locks {
    signals: Arc<Signals>,
    record: Record,
    owners: Mutex<HashSet<Owner>>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    last: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    list: Vec<Waiter>,
    stop: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locks {
    pub(crate) fn new(signals: Arc<Signals>, arena: &Arc<Arena>) -> Self {
        Self {
            signals,
            record: Record::new(arena),
            owners: Mutex::default(),
            waiting: Mutex::default(),
            changed: Condvar::new(),
            last: AtomicU64::new(0),
        }
    }

    /// Take again what programs held when an earlier process was killed, before anybody else is asked.
    pub(crate) fn recover<F: Fabric>(&self, fabric: &F) {
        for (ino, handle, held) in self.record.left() {
            match fabric.keep_lock(ino, &held) {
                Ok(LockAnswer::Granted) => self.note(ino, handle, &held),
                other => kos_types::log!("kos-fuse: a lock of inode {} is lost: {other:?}", ino.0),
            }
        }
    }

    /// Give back what a lock of no kind says.
    pub(crate) fn give_back<F: Fabric>(
        &self,
        fabric: &F,
        (ino, handle): (Ino, u64),
        what: &FileLock,
    ) -> Result<LockAnswer> {
        let answer = fabric.set_lock(ino, what, None);
        self.record.keep(fabric, (ino, handle), what, &answer);
        answer
    }

    /// Take, and if it `waits` wait for it: the answer comes now, or from another thread.
    pub(crate) fn wait<F: Fabric>(
        &self,
        fabric: &F,
        (ino, handle): (Ino, u64),
        (wanted, waits): (FileLock, bool),
        who: signals::Waiter,
        deliver: Deliver,
    ) {
        self.note(ino, handle, &wanted);
        let request = self.last.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter { request, ino, handle, lock: wanted, waits, who, deliver };
        match waiter.ask(fabric) {
            Ok(LockAnswer::Waiting) => {}
            other => return self.tell(fabric, waiter, other),
        }
        let mut waiting = lock(&self.waiting);
        if waiting.stop || waiting.list.len() >= WAITERS_MAX {
            drop(waiting);
            let given_up = Self::give_up(fabric, &waiter, Ok(LockAnswer::Full));
            return self.tell(fabric, waiter, given_up);
        }
        waiting.list.push(waiter);
        drop(waiting);
        self.changed.notify_all();
    }

    /// Nobody waits for it any more.
    fn tell<F: Fabric>(&self, fabric: &F, waiter: Waiter, answer: Result<LockAnswer>) {
        self.record.keep(fabric, (waiter.ino, waiter.handle), &waiter.lock, &answer);
        (waiter.deliver)(answer);
    }

    fn note(&self, ino: Ino, handle: u64, wanted: &FileLock) {
        if wanted.kind.is_some() {
            lock(&self.owners).insert((ino, wanted.owner, handle, wanted.flock));
        }
    }

    /// Nobody waits for it any more. Answers `refused`, unless the lock is there by now.
    fn give_up<F: Fabric>(fabric: &F, waiter: &Waiter, refused: Result<LockAnswer>) -> Result<LockAnswer> {
        fabric.cancel_lock(waiter.request)?;
        match fabric.set_lock(waiter.ino, &waiter.lock, None)? {
            LockAnswer::Granted => Ok(LockAnswer::Granted),
            _ => refused,
        }
    }

    /// A request was interrupted: who waits by it waits no more.
    pub(crate) fn interrupt<F: Fabric>(&self, fabric: &F, request: u64) {
        let mut waiting = lock(&self.waiting);
        let at = waiting.list.iter().position(|waiter| waiter.who.request == request);
        let found = at.map(|at| waiting.list.remove(at));
        drop(waiting);
        // One that is just being looked at is asked about when it has been.
        if let Some(waiter) = found {
            self.end(fabric, waiter);
        }
    }

    fn end<F: Fabric>(&self, fabric: &F, waiter: Waiter) {
        let signal = Err(Error::new(Kind::Interrupted, "lock: a signal"));
        let given_up = Self::give_up(fabric, &waiter, signal);
        self.tell(fabric, waiter, given_up);
    }

    /// A process closes a file: its locks there go.
    pub(crate) fn closed<F: Fabric>(&self, fabric: &F, ino: Ino, owner: u64) -> Result<()> {
        self.drop_owners(fabric, |own| own.0 == ino && own.1 == owner && !own.3)
    }

    /// An open file is gone: so are the locks that came through it, also those of the open file itself.
    pub(crate) fn released<F: Fabric>(&self, fabric: &F, handle: u64) -> Result<()> {
        self.drop_owners(fabric, |own| own.2 == handle)
    }

    fn drop_owners<F: Fabric>(&self, fabric: &F, gone: impl Fn(&Owner) -> bool) -> Result<()> {
        let gone: Vec<Owner> = lock(&self.owners).extract_if(gone).collect();
        gone.into_iter().try_for_each(|(ino, owner, handle, flock)| {
            let all = FileLock { owner, kind: None, start: 0, end: u64::MAX, pid: 0, flock };
            self.give_back(fabric, (ino, handle), &all).map(drop)
        })
    }

    /// Wait until somebody waits. False at the end.
    fn any(&self) -> bool {
        let idle = |waiting: &mut Waiting| waiting.list.is_empty() && !waiting.stop;
        let waiting = self.changed.wait_while(lock(&self.waiting), idle);
        !waiting.unwrap_or_else(PoisonError::into_inner).stop
    }

    fn settle<F: Fabric>(&self, fabric: &F) {
        let waiting = std::mem::take(&mut lock(&self.waiting).list);
        let mut still = Vec::new();
        for waiter in waiting {
            match waiter.ask(fabric) {
                Ok(LockAnswer::Waiting) if self.signals.interrupts(waiter.who) => self.end(fabric, waiter),
                Ok(LockAnswer::Waiting) => still.push(waiter),
                other => self.tell(fabric, waiter, other),
            }
        }
        lock(&self.waiting).list.append(&mut still);
    }
}

/// The thread that answers; it ends when this is dropped.
pub(crate) struct Answerer {
    locks: Arc<Locks>,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    pub(crate) fn start<F: Fabric + 'static>(fabric: Arc<F>, locks: Arc<Locks>) -> Result<Self> {
        let all = Arc::clone(&locks);
        let run = move || {
            let mut seen = 0;
            while all.any() {
                match fabric.locks_changed(seen, PERIOD) {
                    Ok(count) => seen = count,
                    Err(e) => {
                        kos_types::log!("kos-fuse: waiting for locks: {e}; tried again in {PERIOD:?}");
                        thread::sleep(PERIOD);
                    }
                }
                all.settle(&*fabric);
            }
        };
        let thread = thread::Builder::new().name("locks".into()).spawn(run);
        Ok(Self { locks, thread: Some(thread.map_err(|e| Error::io("locks: thread", &e))?) })
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        lock(&self.locks.waiting).stop = true;
        self.locks.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("kos-fuse: the locks' thread panicked");
        }
        for waiter in std::mem::take(&mut lock(&self.locks.waiting).list) {
            (waiter.deliver)(Err(Error::new(Kind::Io, "lock: the mount ends")));
        }
    }
}
