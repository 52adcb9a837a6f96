//! Jobs: what is known of each, and what changes it.

use std::fmt;

use crate::{Ino, Time};

/// The directory of the jobs' tree, `/kos/jobs`.
pub const JOBS: Ino = Ino(8);
/// `/kos/jobs/by-name`: a symbolic link to the newest job dropped under each name.
pub const JOBS_BY_NAME: Ino = Ino(9);
/// `/kos/jobs/rejected`: what was refused, and why.
pub const JOBS_REJECTED: Ino = Ino(10);

/// Number of a job, counted from 1 and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct JobId(pub u64);

/// As whom a job runs: the process that created its name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Submitter {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum JobState {
    /// Accepted, and its file is still open for writing.
    New,
    /// To be started.
    Ready,
    /// An attempt is under way.
    Running,
    /// Ended with exit status 0.
    Done,
    /// Ended otherwise.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
    /// The node ended while it ran.
    Lost,
}

impl JobState {
    /// Every state, in the order of their numbers in records.
    pub const ALL: [Self; 7] =
        [Self::New, Self::Ready, Self::Running, Self::Done, Self::Failed, Self::Cancelled, Self::Lost];

    /// Whether nothing happens to it any more.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled | Self::Lost)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        })
    }
}

/// The record of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Where it is in its life.
    pub state: JobState,
    /// Somebody asked for its end.
    pub cancel: bool,
    /// The name under which it was dropped.
    pub dropped: Vec<u8>,
    /// The name it gives itself, else the dropped one.
    pub name: Vec<u8>,
    /// As whom it runs.
    pub submitter: Submitter,
    /// Its directory.
    pub dir: Ino,
    /// Attempts started.
    pub attempt: u32,
    /// Exit status, or 128 and the signal; once it ended.
    pub exit: Option<i32>,
    /// What else is to be said of its end.
    pub reason: String,
    /// The node that runs it.
    pub node: String,
    /// When it was accepted.
    pub submitted: Time,
    /// When the last attempt began.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
}

/// A change of a job. Each replies `Job`, but for `Open`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum JobOp {
    /// Make the jobs' tree where it is missing, and settle what the end of the node left behind.
    /// Replies `Done`.
    Open {
        /// Its mount goes on: files that are being dropped are, still.
        resumes: bool,
    },
    /// Accept a specification; `Invalid` says why not.
    Submit {
        /// The name under which it was dropped.
        dropped: Vec<u8>,
        /// As whom it runs.
        submitter: Submitter,
        /// Mode bits of the dropped file: who may read it may look at the job.
        mode: u32,
        /// The specification.
        text: Vec<u8>,
        /// The job that an earlier version of the same file made.
        again: Option<JobId>,
    },
    /// The last version of the file was refused, or it was removed: the job never was.
    Withdraw(JobId),
    /// The last writer closed the file.
    Ready(JobId),
    /// An attempt is about to begin.
    Start {
        /// The job.
        id: JobId,
        /// Who runs it.
        node: String,
    },
    /// An attempt ended.
    End {
        /// The job.
        id: JobId,
        /// Which attempt.
        attempt: u32,
        /// Exit status, or 128 and the signal.
        exit: i32,
        /// What else is to be said; a job with a reason has failed.
        reason: String,
    },
    /// Somebody asks for its end. Harmless when it ended.
    Cancel(JobId),
}
