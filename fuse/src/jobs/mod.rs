//! The jobs' tree: dropping a file submits it, and four files of a job's directory are made from its record. All
//! other names in it are ordinary inodes of the fabric.

mod drops;
mod refuse;
mod status;
mod submit;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use kos_types::{
    Attr, Dirent, Error, Fabric, FileKind, Ino, JOBS, JOBS_BY_NAME, JOBS_REJECTED, Job, JobId, JobOp, Kind,
    Op, Reply, Result, SetAttr, limits,
};

pub(crate) use drops::Caller;
pub(crate) use wait::Answerer;

use crate::control;
use crate::fs::{Fs, Name};
use crate::signals::{self, Signals};
use drops::Drops;
use wait::{Deliver, Waiters};

/// Inodes of the files that are made from records: among the control tree's, above its entries.
const BASE: u64 = control::BASE | 1 << 43;
const FILE_BITS: u32 = 2;
/// Their positions in listings: above `.` and `..`, below the fabric's entries.
const COOKIE_BASE: u64 = 3;
/// Longest name of a dropped file: `rejected/NAME.error` must be a name.
const NAME_BYTES_MAX: usize = limits::NAME_BYTES_MAX - ".error".len();

/// A file of a job's directory that is made from its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobFile {
    Spec,
    Status,
    Ctl,
    Wait,
}

impl JobFile {
    const ALL: [(Self, &'static str, u32); 4] = [
        (Self::Spec, "spec", 0o555),
        (Self::Status, "status", 0o444),
        (Self::Ctl, "ctl", 0o600),
        (Self::Wait, "wait", 0o444),
    ];

    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().find(|(_, own, _)| own.as_bytes() == name).map(|&(file, ..)| file)
    }

    const fn ino(self, id: JobId) -> Ino {
        Ino(BASE | id.0 << FILE_BITS | self as u64)
    }
}

/// The job's file that an inode is.
pub(crate) fn file_of(ino: Ino) -> Option<(JobId, JobFile)> {
    let number = ino.0.checked_sub(BASE)?;
    let (file, ..) = JobFile::ALL[(number & ((1 << FILE_BITS) - 1)) as usize];
    Some((JobId(number >> FILE_BITS), file))
}

/// How long the kernel may believe names in a directory: not at all where we change them ourselves.
pub(crate) fn names_ttl(dir: Ino, ttl: Duration) -> Duration {
    if is_ours(dir) { Duration::ZERO } else { ttl }
}

/// The directories that everybody shares.
pub(crate) fn is_ours(dir: Ino) -> bool {
    matches!(dir, JOBS | JOBS_BY_NAME | JOBS_REJECTED)
}

/// Names that editors and copiers use before the real one.
fn is_ignored(name: &[u8]) -> bool {
    name.starts_with(b".") || [&b"~"[..], b".tmp", b".part"].iter().any(|end| name.ends_with(end))
}

fn not_permitted(why: &str) -> Error {
    Error::new(Kind::NotPermitted, why)
}

/// What a mount remembers of jobs.
pub(crate) struct Jobs {
    drops: Drops,
    pub(crate) waiters: Arc<Waiters>,
}

impl Jobs {
    pub(crate) fn new(signals: Arc<Signals>) -> Self {
        Self { drops: Drops::default(), waiters: Arc::new(Waiters::new(signals)) }
    }
}

impl<F: Fabric> Fs<F> {
    fn job_op(&self, op: JobOp) -> Result<Job> {
        match self.fabric.propose(Op::Job(op))? {
            Reply::Job(job) => Ok(job),
            other => Err(Error::new(Kind::Io, format!("jobs: unexpected reply {other:?}"))),
        }
    }

    /// The job's file of that name, if the directory is a job's.
    pub(crate) fn job_file(&self, (parent, name): Name<'_>) -> Result<Option<(JobId, JobFile)>> {
        let Some(file) = JobFile::named(name) else { return Ok(None) };
        if control::owns(parent) {
            return Ok(None);
        }
        Ok(self.fabric.job_of(parent)?.map(|id| (id, file)))
    }

    pub(crate) fn job_file_attr(&self, id: JobId, file: JobFile) -> Result<Attr> {
        let job = self.fabric.job(id).map_err(|e| match e.kind() {
            Kind::NotFound => Error::new(Kind::Stale, "job: removed"),
            _ => e,
        })?;
        let size = match file {
            JobFile::Wait => 0,
            _ => self.job_file_text(&job, file)?.len() as u64,
        };
        let time = job.ended.or(job.started).unwrap_or(job.submitted);
        let (_, _, mode) = JobFile::ALL[file as usize];
        Ok(Attr {
            ino: file.ino(id),
            kind: FileKind::File,
            mode,
            nlink: 1,
            uid: job.submitter.uid,
            gid: job.submitter.gid,
            rdev: 0,
            size,
            bytes: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: job.submitted,
            sealed: false,
        })
    }

    fn job_file_text(&self, job: &Job, file: JobFile) -> Result<Vec<u8>> {
        match file {
            JobFile::Spec => self.fabric.job_spec(job.id),
            JobFile::Status => Ok(status::text(job).into_bytes()),
            JobFile::Ctl => Ok(b"kill\n".to_vec()),
            JobFile::Wait => Ok(Vec::new()),
        }
    }

    /// What an open file of a job reads: its contents now.
    pub(crate) fn job_file_open(&self, id: JobId, file: JobFile, flags: i32) -> Result<Arc<[u8]>> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY && file != JobFile::Ctl {
            return Err(not_permitted("of a job's own files only ctl takes words"));
        }
        Ok(self.job_file_text(&self.fabric.job(id)?, file)?.into())
    }

    /// A shell's redirection truncates `ctl` first.
    pub(crate) fn job_file_set(&self, id: JobId, file: JobFile, set: &SetAttr) -> Result<Attr> {
        let only_size = SetAttr { size: set.size, mtime: set.mtime, ..SetAttr::default() };
        if file != JobFile::Ctl || *set != only_size {
            return Err(not_permitted("of a job's own files only ctl takes words"));
        }
        self.job_file_attr(id, file)
    }

    pub(crate) fn job_file_write(&self, id: JobId, file: JobFile, data: &[u8]) -> Result<()> {
        if file != JobFile::Ctl {
            return Err(not_permitted("of a job's own files only ctl takes words"));
        }
        match data.trim_ascii() {
            b"kill" => self.job_cancel(id),
            b"" => Ok(()),
            _ => Err(Error::new(Kind::Invalid, "ctl: kill")),
        }
    }

    /// `rm -r` of a job's directory takes its own files away first.
    pub(crate) fn job_cancel(&self, id: JobId) -> Result<()> {
        self.job_op(JobOp::Cancel(id)).map(drop)
    }

    /// Whether reads of this inode wait for the end of a job.
    pub(crate) fn is_wait(&self, ino: Ino) -> bool {
        file_of(ino).is_some_and(|(_, file)| file == JobFile::Wait)
    }

    /// Answer a read of a `wait` file, now or when the job has ended.
    pub(crate) fn wait(&self, ino: Ino, who: signals::Waiter, off: u64, deliver: Deliver) {
        match file_of(ino) {
            Some((id, JobFile::Wait)) => self.jobs.waiters.read(&*self.fabric, id, who, off, deliver),
            _ => deliver(Err(Error::new(Kind::Stale, "wait: no such file"))),
        }
    }

    /// Give the entries of a job's directory that are made from its record to `add`. True when it is full.
    pub(crate) fn job_files_list(
        &self,
        dir: Ino,
        after: u64,
        add: &mut impl FnMut(&Dirent) -> bool,
    ) -> Result<bool> {
        if after >= COOKIE_BASE + JobFile::ALL.len() as u64 - 1 {
            return Ok(false);
        }
        let Some(id) = self.fabric.job_of(dir)? else { return Ok(false) };
        for (cookie, (file, name, _)) in (COOKIE_BASE..).zip(JobFile::ALL) {
            if cookie > after {
                let attr = self.job_file_attr(id, file)?;
                if add(&Dirent { cookie, name: name.as_bytes().to_vec(), attr }) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
