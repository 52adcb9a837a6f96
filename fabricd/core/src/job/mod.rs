//! Jobs as records of the state machine: accepted, started, ended, each once. Their bytes (output, work,
//! result) are ordinary inodes in a directory of the job's own.

pub mod plan;
mod read;
mod record;
pub mod spec;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use kos_types::{
    Attr, Cred, Error, FileKind, Ino, JOBS, JOBS_BY_NAME, JOBS_REJECTED, Job, JobId, JobOp, JobState, Kind,
    ROOT, Reply, Result, Submitter, Time, limits,
};

pub use read::{active, job, of_dir, text};

use crate::apply::Txn;
use crate::record::Inode;
use crate::{Tables, keys, namespace};
use record::Counters;
pub(crate) use record::{decode, encode};

/// Exit status of what was asked to end before it began: as if SIGTERM had ended it.
const EXIT_CANCELLED: i32 = 128 + 15;
/// Exit status of what its node took with it: as if SIGKILL had.
const EXIT_LOST: i32 = 128 + 9;
/// Everybody may drop jobs, and remove only his own.
const TREE_MODE: u32 = 0o1777;
/// A user's own node runs nobody else's: it could not become them.
const OWN_TREE_MODE: u32 = 0o755;

pub(crate) fn run<T: Tables>(txn: &mut Txn<'_, T>, op: &JobOp) -> Result<Reply> {
    let job = match op {
        JobOp::Open { resumes } => return open(txn, *resumes).map(|()| Reply::Done),
        JobOp::Submit { dropped, submitter, mode, text, again } => match again {
            None => submit(txn, dropped, submitter, *mode, text)?,
            Some(id) => resubmit(txn, *id, text)?,
        },
        JobOp::Withdraw(id) => withdraw(txn, *id)?,
        JobOp::Ready(id) => {
            let mut job = job(&txn.tables, *id)?;
            // Somebody may have cancelled it meanwhile.
            if job.state == JobState::New {
                job.state = JobState::Ready;
            }
            put(txn, job)
        }
        JobOp::Start { id, node } => start(txn, *id, node)?,
        JobOp::End { id, attempt, exit, reason } => end(txn, *id, *attempt, (*exit, reason))?,
        JobOp::Cancel(id) => cancel(txn, *id)?,
    };
    Ok(Reply::Job(job))
}

fn put<T: Tables>(txn: &mut Txn<'_, T>, job: Job) -> Job {
    txn.tables.put(keys::job(job.id), encode(txn.seq(), &job));
    if job.state.is_ended() {
        txn.tables.delete(keys::job_active(job.id));
    }
    job
}

fn counters<T: Tables>(txn: &Txn<'_, T>) -> Result<Counters> {
    txn.tables.get(keys::JOBS)?.map_or_else(|| Ok(Counters::default()), |bytes| Counters::decode(&bytes))
}

fn submit<T: Tables>(
    txn: &mut Txn<'_, T>,
    dropped: &[u8],
    submitter: &Submitter,
    mode: u32,
    text: &[u8],
) -> Result<Job> {
    let spec = spec::parse(text)?;
    let mut counters = counters(txn)?;
    if counters.kept >= limits::JOBS_MAX {
        let what = format!("{} jobs are kept, ended ones too: remove some (rm -r jobs/ID)", counters.kept);
        return Err(Error::new(Kind::Busy, what));
    }
    counters = Counters { last: counters.last + 1, kept: counters.kept + 1 };
    txn.tables.put(keys::JOBS.to_vec(), counters.encode());
    let id = JobId(counters.last);

    // Who may read the dropped file may look at the job, and nobody else changes it.
    let file_mode = 0o600 | mode & 0o044;
    let dir_mode = file_mode | 0o100 | (mode & 0o044) >> 2;
    let cred = Cred { uid: submitter.uid, gid: submitter.gid };
    let new = |kind, mode| namespace::New { kind, mode, umask: 0, cred, rdev: 0, target: &[] };
    let name = id.0.to_string();
    let dir = make(txn, JOBS, name.as_bytes(), new(FileKind::Dir, dir_mode))?.ino;
    for output in ["stdout", "stderr"] {
        make(txn, dir, output.as_bytes(), new(FileKind::File, file_mode))?;
    }
    for place in ["work", "result"] {
        make(txn, dir, place.as_bytes(), new(FileKind::Dir, dir_mode))?;
    }
    drop_link(txn, dropped, None)?;
    let target = format!("../{name}").into_bytes();
    make(txn, JOBS_BY_NAME, dropped, namespace::New { target: &target, ..new(FileKind::Symlink, 0o777) })?;

    txn.tables.put(keys::job_text(id), text.to_vec());
    txn.tables.put(keys::job_active(id), Vec::new());
    let job = Job {
        id,
        state: JobState::New,
        cancel: false,
        dropped: dropped.to_vec(),
        name: spec.name.map_or_else(|| dropped.to_vec(), String::into_bytes),
        submitter: submitter.clone(),
        dir,
        attempt: 0,
        exit: None,
        reason: String::new(),
        node: String::new(),
        submitted: txn.now,
        started: None,
        ended: None,
    };
    Ok(put(txn, job))
}

/// Create an inode beside others in one command: each takes a sequence number, because inode numbers and
/// positions are made of them.
fn make<T: Tables>(txn: &mut Txn<'_, T>, parent: Ino, name: &[u8], new: namespace::New<'_>) -> Result<Attr> {
    txn.state.seq.0 += 1;
    namespace::create(txn, parent, name, new)
}

/// The file was written again before its last writer closed it.
fn resubmit<T: Tables>(txn: &mut Txn<'_, T>, id: JobId, text: &[u8]) -> Result<Job> {
    let spec = spec::parse(text)?;
    let mut job = job(&txn.tables, id)?;
    if job.state == JobState::New {
        txn.tables.put(keys::job_text(id), text.to_vec());
        job.name = spec.name.map_or_else(|| job.dropped.clone(), String::into_bytes);
    }
    Ok(put(txn, job))
}

fn withdraw<T: Tables>(txn: &mut Txn<'_, T>, id: JobId) -> Result<Job> {
    let job = job(&txn.tables, id)?;
    if job.state != JobState::New {
        return Err(Error::new(Kind::Invalid, "job: it has begun"));
    }
    for output in ["stdout", "stderr"] {
        take(txn, job.dir, output.as_bytes())?;
    }
    for place in ["work", "result"] {
        let gone = namespace::rmdir(txn, job.dir, place.as_bytes())?;
        namespace::reap(txn, gone.ino)?;
    }
    // Its records go with its directory.
    let gone = namespace::rmdir(txn, JOBS, job.id.0.to_string().as_bytes())?;
    namespace::reap(txn, gone.ino)?;
    Ok(job)
}

/// Remove a name, and the inode if nothing else names it; nobody has it open.
fn take<T: Tables>(txn: &mut Txn<'_, T>, parent: Ino, name: &[u8]) -> Result<()> {
    match namespace::unlink(txn, parent, name) {
        Ok(gone) => namespace::reap(txn, gone.ino),
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Take the link `by-name/<dropped>` away: always, or if it leads to this job.
fn drop_link<T: Tables>(txn: &mut Txn<'_, T>, dropped: &[u8], only: Option<JobId>) -> Result<()> {
    if let Some(id) = only {
        let Some(dentry) = crate::read::dentry(&txn.tables, JOBS_BY_NAME, dropped)? else { return Ok(()) };
        if txn.inode(dentry.ino)?.target != format!("../{}", id.0).as_bytes() {
            return Ok(());
        }
    }
    take(txn, JOBS_BY_NAME, dropped)
}

/// Called when a directory leaves the jobs' tree: its job's records go with it.
pub(crate) fn removed<T: Tables>(txn: &mut Txn<'_, T>, name: &[u8]) -> Result<()> {
    let Some(id) = read::id_of(name) else {
        return Err(Error::new(Kind::NotPermitted, "rmdir: the jobs' tree needs it"));
    };
    let job = job(&txn.tables, id)?;
    drop_link(txn, &job.dropped, Some(id))?;
    for key in [keys::job(id), keys::job_text(id), keys::job_active(id)] {
        txn.tables.delete(key);
    }
    let counters = counters(txn)?;
    let kept = counters.kept.saturating_sub(1);
    txn.tables.put(keys::JOBS.to_vec(), Counters { kept, ..counters }.encode());
    Ok(())
}

fn start<T: Tables>(txn: &mut Txn<'_, T>, id: JobId, node: &str) -> Result<Job> {
    let mut job = job(&txn.tables, id)?;
    if job.state != JobState::Ready {
        return Err(Error::new(Kind::Busy, format!("start: the job is {}", job.state)));
    }
    job.state = JobState::Running;
    job.attempt += 1;
    node.clone_into(&mut job.node);
    job.started = Some(txn.now);
    Ok(put(txn, job))
}

fn end<T: Tables>(txn: &mut Txn<'_, T>, id: JobId, attempt: u32, (exit, reason): (i32, &str)) -> Result<Job> {
    let mut job = job(&txn.tables, id)?;
    if job.state != JobState::Running || job.attempt != attempt {
        return Err(Error::new(Kind::Busy, format!("end: attempt {attempt} of a {} job", job.state)));
    }
    let state = match exit {
        _ if job.cancel => JobState::Cancelled,
        0 if reason.is_empty() => JobState::Done,
        _ => JobState::Failed,
    };
    ended(&mut job, state, exit, reason, txn.now);
    Ok(put(txn, job))
}

fn ended(job: &mut Job, state: JobState, exit: i32, reason: &str, now: Time) {
    job.state = state;
    job.exit = Some(exit);
    reason.clone_into(&mut job.reason);
    job.ended = Some(now);
}

fn cancel<T: Tables>(txn: &mut Txn<'_, T>, id: JobId) -> Result<Job> {
    let mut job = job(&txn.tables, id)?;
    match job.state {
        JobState::New | JobState::Ready => {
            ended(&mut job, JobState::Cancelled, EXIT_CANCELLED, "cancelled before it began", txn.now);
        }
        JobState::Running => job.cancel = true,
        JobState::Done | JobState::Failed | JobState::Cancelled | JobState::Lost => return Ok(job),
    }
    Ok(put(txn, job))
}

/// No attempt is under way: the node has just started.
fn open<T: Tables>(txn: &mut Txn<'_, T>, resumes: bool) -> Result<()> {
    if txn.tables.get(&keys::inode(JOBS))?.is_none() {
        make_tree(txn)?;
    }
    let mut after = JobId(0);
    loop {
        let jobs = active(&txn.tables, after, 256)?;
        let Some(last) = jobs.last() else { return Ok(()) };
        after = last.id;
        for job in jobs {
            recover(txn, job, resumes)?;
        }
    }
}

fn recover<T: Tables>(txn: &mut Txn<'_, T>, mut job: Job, resumes: bool) -> Result<()> {
    let now = txn.now;
    match job.state {
        // Its file is gone last: all have closed it.
        JobState::New if resumes => match crate::read::dentry(&txn.tables, JOBS, &job.dropped)? {
            Some(_) => return Ok(()),
            None => job.state = JobState::Ready,
        },
        JobState::New => {
            let why = "the node ended before the file was closed by its last writer: drop it again";
            ended(&mut job, JobState::Lost, EXIT_LOST, why, now);
        }
        JobState::Running if job.cancel => {
            ended(&mut job, JobState::Cancelled, EXIT_CANCELLED, "", now);
        }
        JobState::Running => {
            let wants = spec::parse(&text(&txn.tables, job.id)?)?.restart;
            if wants && job.attempt < limits::JOB_ATTEMPTS_MAX {
                job.state = JobState::Ready;
            } else {
                ended(&mut job, JobState::Lost, EXIT_LOST, "the node ended while it ran", now);
            }
        }
        JobState::Ready | JobState::Done | JobState::Failed | JobState::Cancelled | JobState::Lost => {
            return Ok(());
        }
    }
    put(txn, job);
    Ok(())
}

/// The directories that always exist: of whose node it is.
fn make_tree<T: Tables>(txn: &mut Txn<'_, T>) -> Result<()> {
    let root = txn.inode(ROOT)?.attr;
    let mode = if root.uid == 0 { TREE_MODE } else { OWN_TREE_MODE };
    for (ino, nlink) in [(JOBS, 4), (JOBS_BY_NAME, 2), (JOBS_REJECTED, 2)] {
        let attr = Attr {
            ino,
            kind: FileKind::Dir,
            mode,
            nlink,
            uid: root.uid,
            gid: root.gid,
            rdev: 0,
            size: 0,
            bytes: 0,
            atime: txn.now,
            mtime: txn.now,
            ctime: txn.now,
            btime: txn.now,
            sealed: false,
        };
        txn.state.inodes += 1;
        let birth = txn.seq();
        txn.put_inode(Inode { birth, attr, tree: Ino(0), target: Vec::new() });
    }
    for (name, ino) in [("by-name", JOBS_BY_NAME), ("rejected", JOBS_REJECTED)] {
        txn.state.seq.0 += 1;
        namespace::put_entry(txn, JOBS, name.as_bytes(), ino, None);
    }
    Ok(())
}
