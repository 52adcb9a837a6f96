//! Readers of `wait` files. They hold no thread of the session: their answers are kept until the job ends, or until a
//! signal is pending for the reader.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_types::{Error, Fabric, Job, JobId, Kind, Result};

use crate::signals::{self, Signals};

/// Readers that wait at once.
const WAITERS_MAX: usize = 1024;
/// Time between looks for signals.
const PERIOD: Duration = Duration::from_millis(200);

/// Answers one read.
pub(crate) type Deliver = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

struct Waiter {
    job: JobId,
    who: signals::Waiter,
    deliver: Deliver,
}

/// Everybody who waits.
pub(crate) struct Waiters {
    signals: Arc<Signals>,
    list: Mutex<Vec<Waiter>>,
    changed: Condvar,
    stop: AtomicBool,
}

/// What `wait` reads when a job ended.
fn answer(job: &Job) -> Vec<u8> {
    format!("{}\n", job.exit.unwrap_or_default()).into_bytes()
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "wait: a signal")
}

impl Waiters {
    pub(crate) fn new(signals: Arc<Signals>) -> Self {
        Self { signals, list: Mutex::default(), changed: Condvar::new(), stop: AtomicBool::new(false) }
    }

    /// A request was interrupted: who waits by it waits no more.
    pub(crate) fn interrupt(&self, request: u64) {
        let mut list = self.list();
        let at = list.iter().position(|waiter| waiter.who.request == request);
        let found = at.map(|at| list.remove(at));
        drop(list);
        // One that is just being looked at is asked about when it has been.
        if let Some(waiter) = found {
            (waiter.deliver)(Err(interrupted()));
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Waiter>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Read from `off` on, now or when the job has ended.
    pub(crate) fn read<F: Fabric>(
        &self,
        fabric: &F,
        job: JobId,
        who: signals::Waiter,
        off: u64,
        deliver: Deliver,
    ) {
        let deliver: Deliver = Box::new(move |text| {
            let skip = usize::try_from(off).unwrap_or(usize::MAX);
            deliver(text.map(|text| text.get(skip..).unwrap_or_default().to_vec()));
        });
        match fabric.job(job) {
            Ok(found) if found.state.is_ended() => return deliver(Ok(answer(&found))),
            Ok(_) => (),
            Err(e) => return deliver(Err(e)),
        }
        let mut list = self.list();
        if list.len() >= WAITERS_MAX {
            drop(list);
            return deliver(Err(Error::new(Kind::Busy, "wait: too many readers wait")));
        }
        list.push(Waiter { job, who, deliver });
        drop(list);
        self.changed.notify_all();
    }

    /// Wait until somebody waits. False at the end.
    fn any(&self) -> bool {
        let idle = |list: &mut Vec<Waiter>| list.is_empty() && !self.stop.load(Ordering::SeqCst);
        drop(self.changed.wait_while(self.list(), idle).unwrap_or_else(PoisonError::into_inner));
        !self.stop.load(Ordering::SeqCst)
    }

    fn settle<F: Fabric>(&self, fabric: &F) {
        let waiting = std::mem::take(&mut *self.list());
        let mut still = Vec::new();
        for waiter in waiting {
            match fabric.job(waiter.job) {
                Ok(job) if job.state.is_ended() => (waiter.deliver)(Ok(answer(&job))),
                Ok(_) if self.signals.interrupts(waiter.who) => (waiter.deliver)(Err(interrupted())),
                Ok(_) => still.push(waiter),
                Err(e) => (waiter.deliver)(Err(e)),
            }
        }
        self.list().append(&mut still);
    }
}

/// The thread that answers; it ends when this is dropped.
pub(crate) struct Answerer {
    waiters: Arc<Waiters>,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    pub(crate) fn start<F: Fabric + 'static>(fabric: Arc<F>, waiters: Arc<Waiters>) -> Result<Self> {
        let all = Arc::clone(&waiters);
        let run = move || {
            let mut seen = 0;
            while all.any() {
                match fabric.jobs_changed(seen, PERIOD) {
                    Ok(count) => seen = count,
                    Err(e) => {
                        kos_types::log!("kos-fuse: waiting for jobs: {e}; tried again in {PERIOD:?}");
                        thread::sleep(PERIOD);
                    }
                }
                all.settle(&*fabric);
            }
        };
        let thread = thread::Builder::new().name("waiters".into()).spawn(run);
        Ok(Self { waiters, thread: Some(thread.map_err(|e| Error::io("waiters: thread", &e))?) })
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        let list = self.waiters.list();
        self.waiters.stop.store(true, Ordering::SeqCst);
        drop(list);
        self.waiters.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("kos-fuse: the waiters' thread panicked");
        }
        for waiter in std::mem::take(&mut *self.waiters.list()) {
            (waiter.deliver)(Err(Error::new(Kind::Io, "wait: the mount ends")));
        }
    }
}
