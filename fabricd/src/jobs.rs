//! The runner: takes jobs that are ready, gives them to the executor and logs how they end. What to do next is
//! decided by [`kos_core::job::plan`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kos_core::job::plan::{Run, Step, plan};
use kos_core::job::{self, spec};
use kos_kernels::{Attempt, Ended, Event, Executor, Native, Stop, Task};
use kos_types::{Error, Job, JobId, JobOp, JobState, Kind, Op, Reply, Result};

use crate::node::{Inner, Node};

/// Time between looks at deadlines.
const PERIOD: Duration = Duration::from_millis(500);
/// Records taken from the tables at once.
const SCAN: usize = 256;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit status of what its launcher took with it: as if SIGKILL had.
const EXIT_KILLED: i32 = 128 + 9;
/// Exit status of what could not be started, as shells have it.
const EXIT_CANNOT_RUN: i32 = 126;

/// Writes out what programs wrote: called before an end is logged.
type Flush = Box<dyn Fn() -> Result<()> + Send>;

/// How to run jobs.
pub struct RunnerOptions {
    /// The mount directory, where jobs find their files.
    pub mount: PathBuf,
    /// This node's name.
    pub node: String,
    /// A file that the launcher locks.
    pub lock: PathBuf,
    /// Jobs that run at once.
    pub slots: usize,
    /// Writes out what programs wrote.
    pub flush: Flush,
}

impl fmt::Debug for RunnerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerOptions").field("mount", &self.mount).finish_non_exhaustive()
    }
}

/// Runs jobs until it is dropped; those under way end with it.
pub struct Runner {
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

impl Runner {
    /// Run the node's jobs.
    ///
    /// # Errors
    /// `Io` when the launcher or a thread cannot be started.
    pub fn start(node: &Node, options: RunnerOptions) -> Result<Self> {
        let inner = node.inner();
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work::new(Arc::clone(&inner), options)?;
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut seen = 0;
            while !stopped.load(Ordering::SeqCst) {
                if let Err(e) = work.round() {
                    kos_types::log!("fabricd: jobs: {e}; it goes on in {PERIOD:?}");
                    thread::sleep(PERIOD);
                }
                seen = work.inner.bell.wait(seen, PERIOD);
            }
        };
        let thread = thread::Builder::new().name("jobs".into()).spawn(run);
        Ok(Self { inner, stop, thread: Some(thread.map_err(|e| Error::io("jobs: thread", &e))?) })
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.inner.bell.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("fabricd: the jobs' runner panicked");
        }
    }
}

/// The runner's thread.
struct Work {
    inner: Arc<Inner>,
    options: RunnerOptions,
    executor: Native,
    events: Arc<Mutex<Vec<Event>>>,
    runs: BTreeMap<JobId, Run>,
    began: Instant,
}

impl Work {
    fn new(inner: Arc<Inner>, options: RunnerOptions) -> Result<Self> {
        let events = Arc::default();
        let executor = launcher(&inner, &options, &events)?;
        Ok(Self { inner, options, executor, events, runs: BTreeMap::new(), began: Instant::now() })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn round(&mut self) -> Result<()> {
        self.log_ends()?;
        let jobs = self.jobs()?;
        let runs: Vec<_> = self.runs.values().copied().collect();
        let now = self.now_ms();
        let mut started = Vec::new();
        for step in plan(now, &jobs, &runs, self.options.slots) {
            match step {
                Step::Start(id) => started.extend(self.log_start(id)?),
                Step::Ask(id) => self.stop(id, Stop::Ask)?,
                Step::Force(id) => self.stop(id, Stop::Force)?,
            }
        }
        if started.is_empty() {
            return Ok(());
        }
        // An attempt that a power cut forgets must not have done anything.
        self.inner.sync()?;
        for job in &started {
            if let Err(e) = self.begin(job) {
                let attempt = Attempt { job: job.id.0, number: job.attempt };
                let ended = Ended { attempt, exit: EXIT_CANNOT_RUN, reason: e.to_string() };
                self.events.lock().unwrap_or_else(PoisonError::into_inner).push(Event::Ended(ended));
                self.inner.bell.ring();
            }
        }
        Ok(())
    }

    /// The records of what runs, and of as many ready jobs as could begin.
    fn jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        for &id in self.runs.keys() {
            match job::job(&*self.inner.db, id) {
                Ok(job) => jobs.push(job),
                Err(e) if e.kind() == Kind::NotFound => (),
                Err(e) => return Err(e),
            }
        }
        let (mut after, mut wanted) = (JobId(0), self.options.slots.saturating_sub(self.runs.len()));
        while wanted > 0 {
            let found = job::active(&*self.inner.db, after, SCAN)?;
            let Some(last) = found.last() else { break };
            after = last.id;
            let ready = found.into_iter().filter(|job| job.state == JobState::Ready).take(wanted);
            let had = jobs.len();
            jobs.extend(ready);
            wanted -= jobs.len() - had;
        }
        Ok(jobs)
    }

    fn propose(&self, op: JobOp) -> Result<Job> {
        match self.inner.propose(Op::Job(op))? {
            Reply::Job(job) => Ok(job),
            other => Err(Error::new(Kind::Io, format!("jobs: unexpected reply {other:?}"))),
        }
    }

    /// None when it was cancelled or removed since it was looked at.
    fn log_start(&mut self, id: JobId) -> Result<Option<Job>> {
        match self.propose(JobOp::Start { id, node: self.options.node.clone() }) {
            Ok(job) => Ok(Some(job)),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Busy) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn begin(&mut self, job: &Job) -> Result<()> {
        let run = Run { id: job.id, attempt: job.attempt, until_ms: None, asked_ms: None, forced: false };
        self.runs.insert(job.id, run);
        let spec = spec::parse(&job::text(&*self.inner.db, job.id)?)?;
        let until_ms = spec.time_secs.map(|secs| self.now_ms().saturating_add(secs.saturating_mul(1000)));
        self.runs.insert(job.id, Run { until_ms, ..run });
        self.executor.start(&self.task(job, spec))
    }

    fn task(&self, job: &Job, spec: spec::Spec) -> Task {
        let dir = self.options.mount.join("jobs").join(job.id.0.to_string());
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut argv = spec.command.unwrap_or_else(|| vec![text(dir.join("spec"))]);
        argv.extend(spec.args);
        let mut env = spec.env;
        for (name, value) in [
            ("PATH", PATH.to_owned()),
            ("KOS_MOUNT", text(self.options.mount.clone())),
            ("KOS_JOB_ID", job.id.0.to_string()),
            ("KOS_RESULT", text(dir.join("result"))),
        ] {
            env.push((name.to_owned(), value));
        }
        Task {
            attempt: Attempt { job: job.id.0, number: job.attempt },
            argv,
            env,
            uid: job.submitter.uid,
            gid: job.submitter.gid,
            groups: job.submitter.groups.clone(),
            cwd: dir.join("work"),
            stdout: dir.join("stdout"),
            stderr: dir.join("stderr"),
            mem_bytes: spec.mem_bytes,
        }
    }

    fn stop(&mut self, id: JobId, how: Stop) -> Result<()> {
        let now = self.now_ms();
        let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
        match how {
            Stop::Ask => run.asked_ms = Some(now),
            Stop::Force => run.forced = true,
        }
        let attempt = Attempt { job: id.0, number: run.attempt };
        self.executor.stop(attempt, how)
    }

    fn log_ends(&mut self) -> Result<()> {
        let events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        let mut ends = Vec::new();
        for event in events {
            match event {
                Event::Ended(ended) => ends.push(ended),
                Event::Gone => {
                    let reason = "the launcher ended".to_owned();
                    ends.extend(self.runs.values().map(|run| Ended {
                        attempt: Attempt { job: run.id.0, number: run.attempt },
                        exit: EXIT_KILLED,
                        reason: reason.clone(),
                    }));
                    kos_types::log!("fabricd: jobs: {reason}; starting another");
                    self.executor = launcher(&self.inner, &self.options, &self.events)?;
                }
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        // One flush for all of them: an end that is told stands for results that are kept.
        let flushed = (self.options.flush)();
        for ended in ends {
            self.log_end(ended, &flushed)?;
        }
        Ok(())
    }

    fn log_end(&mut self, ended: Ended, flushed: &Result<()>) -> Result<()> {
        let id = JobId(ended.attempt.job);
        let Some(run) = self.runs.get(&id).filter(|run| run.attempt == ended.attempt.number) else {
            return Ok(());
        };
        let reason = match flushed {
            Err(e) => format!("its files could not be flushed: {e}"),
            // A cancelled one says so itself.
            Ok(()) if run.asked_ms.is_some() && run.is_over(self.now_ms()) => "its time was over".to_owned(),
            Ok(()) => ended.reason,
        };
        self.runs.remove(&id);
        match self.propose(JobOp::End { id, attempt: ended.attempt.number, exit: ended.exit, reason }) {
            // Somebody removed it.
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}

/// A process of this very program, in another mode.
fn launcher(inner: &Arc<Inner>, options: &RunnerOptions, events: &Arc<Mutex<Vec<Event>>>) -> Result<Native> {
    let (inner, events) = (Arc::clone(inner), Arc::clone(events));
    let report = move |event| {
        events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        inner.bell.ring();
    };
    let args = [OsStr::new("launch"), options.lock.as_os_str()];
    Native::start("/proc/self/exe".as_ref(), &args, report)
}
