//! Executors: they run what a job asks for, and say how it ended. They know nothing of records, queues or
//! filesystems; when to start and to end what is the daemon's business.

pub mod launch;
mod native;
mod session;

use std::path::PathBuf;

use kos_types::Result;
use serde::{Deserialize, Serialize};

pub use native::Native;

/// One attempt of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt {
    /// The job's number.
    pub job: u64,
    /// Counted from 1.
    pub number: u32,
}

/// What to run, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Which attempt this is.
    pub attempt: Attempt,
    /// Program and arguments; at least the program.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Working directory.
    pub cwd: PathBuf,
    /// The file that standard output is appended to.
    pub stdout: PathBuf,
    /// The file that standard error is appended to.
    pub stderr: PathBuf,
    /// Bytes of address space of each process.
    pub mem_bytes: Option<u64>,
}

/// How to end an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Ask all its processes.
    Ask,
    /// Take them away.
    Force,
}

/// How an attempt ended; nothing of it runs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which attempt.
    pub attempt: Attempt,
    /// Exit status, or 128 and the signal.
    pub exit: i32,
    /// What else is to be said; empty when it just exited.
    pub reason: String,
}

/// What an executor reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An attempt ended. Each that was started ends once.
    Ended(Ended),
    /// The executor is gone, and every attempt with it.
    Gone,
}

/// Something that runs attempts. It reports by events, to whoever made it.
pub trait Executor: Send + Sync {
    /// Begin an attempt. That it cannot begin is an event too.
    ///
    /// # Errors
    /// `Io` when the executor is gone.
    fn start(&self, task: &Task) -> Result<()>;

    /// End an attempt. Harmless when it ended.
    ///
    /// # Errors
    /// `Io` when the executor is gone.
    fn stop(&self, attempt: Attempt, how: Stop) -> Result<()>;
}
