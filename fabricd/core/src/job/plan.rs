//! What a runner does next: which jobs begin, and which attempts are ended.

use alloc::vec::Vec;

use kos_types::{Job, JobId, JobState};

/// Milliseconds between asking an attempt to end and taking it away.
pub const GRACE_MS: u64 = 5_000;

/// An attempt that a runner has under way. Times are its own, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The job.
    pub id: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// When its time is over.
    pub until_ms: Option<u64>,
    /// When it was asked to end.
    pub asked_ms: Option<u64>,
    /// It was taken away; its end is on the way.
    pub forced: bool,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Begin an attempt.
    Start(JobId),
    /// Ask an attempt to end.
    Ask(JobId),
    /// Take an attempt away.
    Force(JobId),
}

impl Run {
    /// Its time is over.
    #[must_use]
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until| until <= now_ms)
    }

    fn step(&self, now_ms: u64, job: Option<&Job>) -> Option<Step> {
        match (job, self.asked_ms) {
            _ if self.forced => None,
            // Its directory is gone: nobody waits for a word of it.
            (None, _) => Some(Step::Force(self.id)),
            (_, Some(asked)) => (asked.saturating_add(GRACE_MS) <= now_ms).then_some(Step::Force(self.id)),
            (Some(job), None) => (job.cancel || self.is_over(now_ms)).then_some(Step::Ask(self.id)),
        }
    }
}

/// First come, first served. `jobs` are the records of all runs that are still there, and ready ones.
#[must_use]
pub fn plan(now_ms: u64, jobs: &[Job], runs: &[Run], slots: usize) -> Vec<Step> {
    let job_of = |id| jobs.iter().find(|job| job.id == id);
    let mut steps: Vec<_> = runs.iter().filter_map(|run| run.step(now_ms, job_of(run.id))).collect();
    let mut ready: Vec<_> =
        jobs.iter().filter(|job| job.state == JobState::Ready).map(|job| job.id).collect();
    ready.sort_unstable();
    ready.dedup();
    steps.extend(ready.into_iter().take(slots.saturating_sub(runs.len())).map(Step::Start));
    steps
}
