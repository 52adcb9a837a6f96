use alloc::vec::Vec;

use kos_types::{Error, Ino, JOBS, Job, JobId, Kind, Result};

use super::record;
use crate::{Tables, keys};

fn none(id: JobId) -> Error {
    Error::new(Kind::NotFound, alloc::format!("job {}: none", id.0))
}

/// # Errors
/// `NotFound`.
pub fn job<T: Tables>(tables: &T, id: JobId) -> Result<Job> {
    let bytes = tables.get(&keys::job(id))?.ok_or_else(|| none(id))?;
    record::decode(id, &bytes)
}

/// The specification it was submitted with.
///
/// # Errors
/// `NotFound`.
pub fn text<T: Tables>(tables: &T, id: JobId) -> Result<Vec<u8>> {
    tables.get(&keys::job_text(id))?.ok_or_else(|| none(id))
}

/// At most `max` jobs above `after` that have not ended, in order.
///
/// # Errors
/// `Io`.
pub fn active<T: Tables>(tables: &T, after: JobId, max: usize) -> Result<Vec<Job>> {
    let from = keys::job_active(JobId(after.0.saturating_add(1)));
    let mut out = Vec::new();
    for (key, _) in tables.scan(&from, &keys::end_of(b"W"), max)? {
        // Reads do not stop the committer: it may be gone since the scan.
        match job(tables, JobId(keys::field(&key, 1))) {
            Ok(job) => out.push(job),
            Err(e) if e.kind() == Kind::NotFound => (),
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// The job whose directory this is: its name in the jobs' tree is the number.
///
/// # Errors
/// `Io`.
pub fn of_dir<T: Tables>(tables: &T, dir: Ino) -> Result<Option<JobId>> {
    let prefix = keys::back_link(dir, JOBS, b"");
    let found = tables.scan(&prefix, &keys::end_of(&prefix), 1)?;
    let Some((key, _)) = found.first() else { return Ok(None) };
    let Some(id) = id_of(&key[prefix.len()..]) else { return Ok(None) };
    // A dropped file may have a number for a name.
    match job(tables, id) {
        Ok(job) => Ok((job.dir == dir).then_some(id)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The job of a directory's name.
pub(super) fn id_of(name: &[u8]) -> Option<JobId> {
    let text = core::str::from_utf8(name).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().map(JobId)
}
