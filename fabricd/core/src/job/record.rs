//! The bytes of a job's record, and of the jobs' counters.

use alloc::string::String;
use alloc::vec::Vec;

use kos_types::{Error, Ino, Job, JobId, JobState, Kind, Result, Seq, Submitter, Time};

use crate::record::{Reader, put_time};

/// How many jobs there were, and are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counters {
    /// The last number given out.
    pub(super) last: u64,
    /// Jobs kept.
    pub(super) kept: u64,
}

impl Counters {
    pub(super) fn encode(self) -> Vec<u8> {
        [self.last, self.kept].iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        Ok(Self { last: r.u64()?, kept: r.u64()? })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Names, reasons and groups are far below 4 GiB.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_maybe_time(out: &mut Vec<u8>, time: Option<Time>) {
    out.push(u8::from(time.is_some()));
    put_time(out, time.unwrap_or_default());
}

fn bytes(r: &mut Reader<'_>) -> Result<Vec<u8>> {
    let len = r.u32()? as usize;
    Ok(r.take(len)?.to_vec())
}

fn text(r: &mut Reader<'_>) -> Result<String> {
    String::from_utf8(bytes(r)?).map_err(|_| Error::new(Kind::Io, "job record: not UTF-8"))
}

fn maybe_time(r: &mut Reader<'_>) -> Result<Option<Time>> {
    let is_set = r.u8()? != 0;
    let time = r.time()?;
    Ok(is_set.then_some(time))
}

pub(crate) fn encode(birth: Seq, job: &Job) -> Vec<u8> {
    let mut out = birth.0.to_le_bytes().to_vec();
    // ALL holds every state, so the position exists and is below 7.
    out.push(JobState::ALL.iter().position(|state| *state == job.state).map_or(0, |at| at as u8));
    out.push(u8::from(job.cancel));
    out.push(u8::from(job.exit.is_some()));
    out.extend_from_slice(&job.exit.unwrap_or(0).to_le_bytes());
    for v in [job.attempt, job.submitter.uid, job.submitter.gid, job.submitter.groups.len() as u32] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for group in &job.submitter.groups {
        out.extend_from_slice(&group.to_le_bytes());
    }
    out.extend_from_slice(&job.dir.0.to_le_bytes());
    put_time(&mut out, job.submitted);
    put_maybe_time(&mut out, job.started);
    put_maybe_time(&mut out, job.ended);
    for text in [&job.dropped, &job.name, job.reason.as_bytes(), job.node.as_bytes()] {
        put_bytes(&mut out, text);
    }
    out
}

pub(crate) fn decode(id: JobId, record: &[u8]) -> Result<Job> {
    let mut r = Reader(record);
    r.u64()?;
    let state = JobState::ALL.get(usize::from(r.u8()?)).copied();
    let state = state.ok_or_else(|| Error::new(Kind::Io, "job record: unknown state"))?;
    let cancel = r.u8()? != 0;
    let has_exit = r.u8()? != 0;
    let exit = r.u32()?.cast_signed();
    let (attempt, uid, gid, groups) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    let groups = (0..groups).map(|_| r.u32()).collect::<Result<_>>()?;
    Ok(Job {
        id,
        state,
        cancel,
        submitter: Submitter { uid, gid, groups },
        attempt,
        exit: has_exit.then_some(exit),
        dir: Ino(r.u64()?),
        submitted: r.time()?,
        started: maybe_time(&mut r)?,
        ended: maybe_time(&mut r)?,
        dropped: bytes(&mut r)?,
        name: bytes(&mut r)?,
        reason: text(&mut r)?,
        node: text(&mut r)?,
    })
}
