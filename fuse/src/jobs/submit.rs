//! When a file becomes a job: after its last writer closed it, or at once when it is renamed or linked in.

use kos_types::{
    Attr, Dirent, Error, Fabric, FileKind, Ino, JOBS, JOBS_BY_NAME, Job, JobId, JobOp, JobState, Kind, Op,
    RenameMode, Reply, Result, Submitter, limits,
};

use super::drops::{Dropped, Verdict, lock};
use super::{Caller, NAME_BYTES_MAX, is_ignored, is_ours, not_permitted};
use crate::fs::{Fs, Name};

const SUID_SGID: u32 = 0o6000;
/// Who else may write a file decides what its owner runs.
const WRITABLE_BY_OTHERS: u32 = 0o022;

impl<F: Fabric> Fs<F> {
    /// Whether a new inode may stand there, and the mode bits it may have.
    pub(crate) fn job_create(&self, (parent, name): Name<'_>, kind: FileKind, mode: u32) -> Result<u32> {
        if self.job_file((parent, name))?.is_some() {
            return Err(Error::new(Kind::Exists, "create: a job's own file"));
        }
        let mode = check_place(parent, kind, mode)?;
        if is_ours(parent) {
            check_name(name)?;
            self.jobs.drops.check_room()?;
        }
        Ok(mode)
    }

    /// The same for a file without a name: it is a job when it is linked in, wherever it was made.
    pub(crate) fn job_create_unnamed(dir: Ino, mode: u32) -> Result<u32> {
        check_place(dir, FileKind::File, mode)
    }

    /// A name was created.
    pub(crate) fn job_created(&self, (parent, name): Name<'_>, ino: Ino, who: Caller) {
        if parent == JOBS && !is_ignored(name) {
            self.jobs.drops.begin(ino, name, who.submitter());
        }
    }

    pub(crate) fn job_opened(&self, ino: Ino, handle: u64, flags: i32) {
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            self.jobs.drops.opened(ino, handle);
        }
    }

    /// Before a name is looked up.
    pub(crate) fn job_awaited(&self, (parent, name): Name<'_>) {
        if parent == JOBS {
            self.jobs.drops.await_leaving(name);
        }
    }

    pub(crate) fn job_written(&self, ino: Ino) {
        self.jobs.drops.written(ino);
    }

    /// close(2) of one descriptor: what was written by then is judged.
    pub(crate) fn job_flushed(&self, ino: Ino, handle: u64) -> Result<()> {
        let Some(dropped) = self.jobs.drops.find(ino) else { return Ok(()) };
        let mut dropped = lock(&dropped);
        if !dropped.written || !dropped.writers.contains(&handle) {
            return Ok(());
        }
        let judged = self.judge(ino, &mut dropped);
        if judged.is_err() && dropped.writers.len() == 1 {
            // Now, not at the last close: the kernel tells that one only after close(2) returned.
            self.keep(ino, &dropped);
        } else if judged.is_ok() {
            self.jobs.drops.leaves(ino);
        }
        judged
    }

    /// The last close of one open: when it was the last writer, the file leaves the listing.
    pub(crate) fn job_released(&self, ino: Ino, handle: u64) {
        let Some(found) = self.jobs.drops.find(ino) else { return };
        let mut dropped = lock(&found);
        if dropped.writers.remove(&handle) && dropped.writers.is_empty() {
            self.leave(ino, &mut dropped);
        }
    }

    /// Nobody writes it any more.
    fn leave(&self, ino: Ino, dropped: &mut Dropped) {
        if dropped.written {
            // Stores into a mapping come after the close; nobody is left to be told but by the file.
            let _ = self.judge(ino, dropped);
        }
        // An empty file is waiting for its bytes.
        if dropped.verdict != Verdict::None {
            self.keep(ino, dropped);
            self.jobs.drops.take(ino);
        }
    }

    /// A file was being dropped when an earlier process of this mount was killed. Whom its creator shared groups with is not
    /// known any more, unless it was a job by then.
    pub(super) fn job_goes_on(&self, entry: &Dirent, owner: Submitter) -> Result<()> {
        let (ino, name) = (entry.attr.ino, &entry.name);
        // What is buffered counts.
        let is_empty = self.attr(ino)?.size == 0;
        let before = if is_empty { None } else { self.accepted(name)? };
        let submitter = before.as_ref().map_or(owner, |job| job.submitter.clone());
        self.jobs.drops.begin(ino, name, submitter);
        let writers = self.writers_of(ino);
        for &handle in &writers {
            self.jobs.drops.opened(ino, handle);
        }
        let Some(found) = self.jobs.drops.find(ino) else { return Ok(()) };
        let mut dropped = lock(&found);
        dropped.written = !is_empty;
        dropped.verdict = before.map_or(Verdict::None, |job| Verdict::Good(job.id));
        if writers.is_empty() {
            // Its last close was under way.
            self.leave(ino, &mut dropped);
        }
        Ok(())
    }

    /// The job that a file of this name was before its last writer closed it.
    fn accepted(&self, name: &[u8]) -> Result<Option<Job>> {
        let link = match self.fabric.lookup(JOBS_BY_NAME, name) {
            Ok(link) => self.fabric.readlink(link.ino)?,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let number = link.strip_prefix(b"../").and_then(|number| str::from_utf8(number).ok());
        let Some(id) = number.and_then(|number| number.parse().ok()) else { return Ok(None) };
        let job = self.fabric.job(JobId(id))?;
        Ok((job.state == JobState::New).then_some(job))
    }

    /// Take a judged file out of the listing: to where it runs, or to the refused ones.
    fn keep(&self, ino: Ino, dropped: &Dropped) {
        let done = match dropped.verdict {
            Verdict::None => Ok(()),
            Verdict::Good(id) => self.leave_jobs(&dropped.name, ino).and_then(|()| self.ready(id)),
            Verdict::Bad => self.keep_refused(&dropped.name, ino),
        };
        if let Err(e) = done {
            kos_types::log!("kos-fuse: job {}: {e}", String::from_utf8_lossy(&dropped.name));
        }
    }

    /// A name is about to be removed. The job goes first: if this process is killed in between, the file is dropped once more
    /// and not never.
    pub(crate) fn job_unlinking(&self, (parent, name): Name<'_>) {
        if parent != JOBS {
            return;
        }
        let Ok(attr) = self.fabric.lookup(JOBS, name) else { return };
        let Some(found) = self.jobs.drops.find(attr.ino) else { return };
        let mut dropped = lock(&found);
        if let Verdict::Good(id) = dropped.verdict {
            self.withdraw(id);
            (dropped.verdict, dropped.written) = (Verdict::None, true);
        }
    }

    /// A name left the jobs' directory: what was dropped under it never was.
    pub(crate) fn job_unlinked(&self, parent: Ino, ino: Ino) {
        if parent != JOBS {
            return;
        }
        let Some(dropped) = self.jobs.drops.take(ino) else { return };
        if let Verdict::Good(id) = lock(&dropped).verdict {
            self.withdraw(id);
        }
    }

    fn ready(&self, id: JobId) -> Result<()> {
        self.job_op(JobOp::Ready(id)).map(drop)
    }

    fn withdraw(&self, id: JobId) {
        if let Err(e) = self.job_op(JobOp::Withdraw(id)) {
            kos_types::log!("kos-fuse: withdrawing job {}: {e}", id.0);
        }
    }

    fn judge(&self, ino: Ino, dropped: &mut Dropped) -> Result<()> {
        dropped.written = false;
        let again = match dropped.verdict {
            Verdict::Good(id) => Some(id),
            Verdict::None | Verdict::Bad => None,
        };
        match self.submit(&dropped.name, ino, &dropped.submitter, again) {
            Ok(id) => {
                dropped.verdict = Verdict::Good(id);
                Ok(())
            }
            Err(e) => {
                if let Some(id) = again {
                    self.withdraw(id);
                }
                dropped.verdict = Verdict::Bad;
                Err(e)
            }
        }
    }

    /// Make a file a job, or say in `rejected/` why not.
    fn submit(&self, name: &[u8], ino: Ino, submitter: &Submitter, again: Option<JobId>) -> Result<JobId> {
        let submitted = self.attr(ino).and_then(|attr| {
            check_file(&attr, submitter)?;
            let mut text = vec![0; limits::JOB_SPEC_BYTES_MAX + 1];
            let len = self.files.read(ino, 0, &mut text)?;
            text.truncate(len);
            let (dropped, submitter, mode) = (name.to_vec(), submitter.clone(), attr.mode);
            self.job_op(JobOp::Submit { dropped, submitter, mode, text, again })
        });
        match submitted {
            Ok(job) => {
                self.unrefuse(name);
                Ok(job.id)
            }
            Err(e) => {
                self.refuse(name, submitter, e.step());
                Err(e)
            }
        }
    }

    /// Take a dropped file's name away; its inode goes as soon as nobody reads it.
    fn leave_jobs(&self, name: &[u8], ino: Ino) -> Result<()> {
        match self.fabric.lookup(JOBS, name) {
            Ok(attr) if attr.ino == ino => (),
            Err(e) if e.kind() != Kind::NotFound => return Err(e),
            // Somebody removed it, or renamed another one over it.
            _ => return Ok(()),
        }
        self.drop_name((JOBS, name))
    }

    /// Unlink a name that the kernel did not ask to unlink.
    pub(super) fn drop_name(&self, (parent, name): Name<'_>) -> Result<()> {
        match self.fabric.propose(Op::Unlink { parent, name: name.to_vec() })? {
            Reply::Unlinked(attr) => {
                self.unlinked(&attr);
                if !self.is_open(attr.ino) {
                    self.files.abandon(attr.ino);
                    // The kernel may still know the name: what it names is gone now, not in a second.
                    self.files.reap();
                }
                Ok(())
            }
            other => Err(Error::new(Kind::Io, format!("unlink: unexpected reply {other:?}"))),
        }
    }

    /// rename(2) that touches the jobs' tree. True when nothing is left to do.
    pub(crate) fn job_renamed(
        &self,
        from: Name<'_>,
        to: Name<'_>,
        mode: RenameMode,
        who: Caller,
    ) -> Result<bool> {
        if self.job_file(from)?.is_some() || self.job_file(to)?.is_some() {
            return Err(not_permitted("rename: a job's own file"));
        }
        if !is_ours(from.0) && !is_ours(to.0) {
            return Ok(false);
        }
        let source = self.attr(self.fabric.lookup(from.0, from.1)?.ino)?;
        if mode == RenameMode::Exchange || source.kind != FileKind::File || is_ours(to.0) && to.0 != JOBS {
            return Err(not_permitted("rename: the jobs' tree takes plain files, in jobs/ itself"));
        }
        if to.0 != JOBS || is_ignored(to.1) {
            self.job_unlinked(from.0, source.ino);
            return Ok(false);
        }
        check_name(to.1)?;
        if mode == RenameMode::NoReplace && self.fabric.lookup(JOBS, to.1).is_ok() {
            return Err(Error::new(Kind::Exists, "rename"));
        }
        if from == to {
            return Ok(true);
        }
        self.job_unlinked(from.0, source.ino);
        // While it is open the kernel finds it under the new name.
        self.await_release(source.ino);
        let id = self.submit(to.1, source.ino, &who.submitter(), None)?;
        let moved = self.drop_name(from).and_then(|()| self.replace(to.1));
        if let Err(e) = moved {
            self.withdraw(id);
            return Err(e);
        }
        self.ready(id)?;
        Ok(true)
    }

    /// A file of that name that waits for its bytes is renamed over.
    fn replace(&self, name: &[u8]) -> Result<()> {
        match self.fabric.lookup(JOBS, name) {
            Ok(attr) => {
                self.job_unlinked(JOBS, attr.ino);
                self.drop_name((JOBS, name))
            }
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// link(2) that touches the jobs' tree. The inode as it is now when nothing is left to do.
    pub(crate) fn job_linked(&self, ino: Ino, to: Name<'_>, who: Caller) -> Result<Option<Attr>> {
        if self.job_file(to)?.is_some() {
            return Err(Error::new(Kind::Exists, "link: a job's own file"));
        }
        if !is_ours(to.0) {
            return Ok(None);
        }
        let attr = self.attr(ino)?;
        if to.0 != JOBS || attr.kind != FileKind::File {
            return Err(not_permitted("link: the jobs' tree takes plain files, in jobs/ itself"));
        }
        check_name(to.1)?;
        if is_ignored(to.1) {
            return Ok(None);
        }
        if self.fabric.lookup(JOBS, to.1).is_ok() {
            return Err(Error::new(Kind::Exists, "link"));
        }
        let id = self.submit(to.1, ino, &who.submitter(), None)?;
        self.ready(id)?;
        self.attr(ino).map(Some)
    }
}

/// Whether such an inode may be made in a directory, and the mode bits it may have.
fn check_place(dir: Ino, kind: FileKind, mode: u32) -> Result<u32> {
    if !is_ours(dir) {
        return Ok(mode);
    }
    if dir != JOBS || kind != FileKind::File || mode & SUID_SGID != 0 {
        return Err(not_permitted("jobs: only plain files are dropped, into jobs/ itself"));
    }
    Ok(mode & !WRITABLE_BY_OTHERS)
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::new(Kind::NameTooLong, "jobs: the name is too long"));
    }
    if name.iter().all(u8::is_ascii_digit) {
        return Err(Error::new(Kind::Invalid, "jobs: a number names a job's directory"));
    }
    Ok(())
}

/// Whether a file may run as `submitter`: it is his, and nobody else can have written it.
fn check_file(attr: &Attr, submitter: &Submitter) -> Result<()> {
    if attr.uid != submitter.uid {
        return Err(not_permitted("the file belongs to another user: copy it instead"));
    }
    if attr.kind != FileKind::File || attr.mode & SUID_SGID != 0 {
        return Err(not_permitted("a job is a plain file without setuid and setgid bits"));
    }
    if attr.mode & WRITABLE_BY_OTHERS != 0 {
        return Err(not_permitted("others may write the file: chmod go-w"));
    }
    Ok(())
}
