//! Jobs: every life they may have, and what holds of their records whatever happens.

use kos_core::job::plan::{GRACE_MS, Run, Step, plan};
use kos_core::job::{active, job, of_dir, text};
use kos_core::{Tables, keys, read};
use kos_types::{
    Cred, FileKind, JOBS, JOBS_BY_NAME, Job, JobId, JobOp, JobState, Kind, Op, Reply, Result, Submitter,
    limits,
};

use crate::fs::Fs;
use crate::invariants;
use crate::rng::{Rng, for_seeds};

const GOOD: &[u8] = b"#!/bin/sh\n";
const AGAIN: &[u8] = b"#!/bin/sh\n#KOS --restart=yes --name=other\n";

fn start() -> Fs {
    let mut fs = Fs::new();
    assert_eq!(fs.run(Op::Job(JobOp::Open { resumes: false })), Ok(Reply::Done));
    fs
}

fn run(fs: &mut Fs, op: JobOp) -> Result<Job> {
    match fs.run(Op::Job(op))? {
        Reply::Job(job) => Ok(job),
        other => panic!("expected a job: {other:?}"),
    }
}

fn submit(fs: &mut Fs, name: &str, text: &[u8], again: Option<JobId>) -> Result<Job> {
    let submitter = Submitter { uid: 7, gid: 8, groups: vec![9, 10] };
    run(fs, JobOp::Submit { dropped: name.into(), submitter, mode: 0o644, text: text.to_vec(), again })
}

fn begin(fs: &mut Fs, id: JobId) -> Result<Job> {
    run(fs, JobOp::Start { id, node: "n".into() })
}

fn end(fs: &mut Fs, id: JobId, attempt: u32, exit: i32) -> Result<Job> {
    run(fs, JobOp::End { id, attempt, exit, reason: String::new() })
}

fn rmdir(fs: &mut Fs, id: JobId) -> Result<Reply> {
    let found = job(&fs.tables, id)?;
    for name in ["stdout", "stderr"] {
        fs.unlink(found.dir, name)?;
    }
    for name in ["work", "result"] {
        fs.run(Op::Rmdir { parent: found.dir, name: name.into() })?;
    }
    fs.run(Op::Rmdir { parent: JOBS, name: id.0.to_string().into_bytes() })
}

#[test]
fn a_job_lives_and_leaves_nothing() {
    let mut fs = start();
    let new = submit(&mut fs, "x", GOOD, None).expect("accepted");
    assert_eq!((new.id, new.state, new.exit), (JobId(1), JobState::New, None));
    assert_eq!(of_dir(&fs.tables, new.dir), Ok(Some(new.id)));
    let link = read::lookup(&fs.tables, JOBS_BY_NAME, b"x").expect("link").ino;
    assert_eq!(read::readlink(&fs.tables, link), Ok(b"../1".to_vec()));
    assert_eq!(
        read::lookup(&fs.tables, new.dir, b"stdout").map(|attr| (attr.uid, attr.mode)),
        Ok((7, 0o644))
    );
    let again = submit(&mut fs, "x", AGAIN, Some(new.id)).expect("accepted again");
    assert_eq!((again.id, &again.name[..]), (new.id, &b"other"[..]));
    assert_eq!(text(&fs.tables, new.id).as_deref(), Ok(AGAIN));
    assert_eq!(begin(&mut fs, new.id).map_err(|e| e.kind()), Err(Kind::Busy), "not ready");
    run(&mut fs, JobOp::Ready(new.id)).expect("ready");
    let running = begin(&mut fs, new.id).expect("starts");
    assert_eq!((running.state, running.attempt, &*running.node), (JobState::Running, 1, "n"));
    assert_eq!(begin(&mut fs, new.id).map_err(|e| e.kind()), Err(Kind::Busy), "once an attempt");
    assert_eq!(end(&mut fs, new.id, 2, 0).map_err(|e| e.kind()), Err(Kind::Busy), "no such attempt");
    let done = end(&mut fs, new.id, 1, 0).expect("ends");
    assert_eq!((done.state, done.exit), (JobState::Done, Some(0)));
    assert_eq!(end(&mut fs, new.id, 1, 0).map_err(|e| e.kind()), Err(Kind::Busy), "once");
    assert_eq!(run(&mut fs, JobOp::Cancel(new.id)).map(|job| job.state), Ok(JobState::Done));
    assert_eq!(active(&fs.tables, JobId(0), 9), Ok(vec![]));
    rmdir(&mut fs, new.id).expect("removed");
    assert_eq!(job(&fs.tables, new.id).map_err(|e| e.kind()), Err(Kind::NotFound));
    assert!(read::lookup(&fs.tables, JOBS_BY_NAME, b"x").is_err());
    assert_eq!(
        submit(&mut fs, "y", GOOD, None).map(|job| job.id),
        Ok(JobId(2)),
        "numbers are not used again"
    );
    invariants::check(&fs.tables);
}

#[test]
fn what_is_refused_leaves_nothing_and_what_is_withdrawn_neither() {
    let mut fs = start();
    let before = fs.tables.clone();
    assert_eq!(submit(&mut fs, "x", b"nonsense", None).map_err(|e| e.kind()), Err(Kind::Invalid));
    assert_eq!(fs.tables, before);
    let new = submit(&mut fs, "x", GOOD, None).expect("accepted");
    run(&mut fs, JobOp::Withdraw(new.id)).expect("withdrawn");
    assert_eq!(read::list(&fs.tables, JOBS, 0, 9).map(|list| list.len()), Ok(2), "by-name and rejected");
    assert_eq!(read::list(&fs.tables, JOBS_BY_NAME, 0, 9), Ok(vec![]));
    assert!(fs.tables.get(&keys::job_text(new.id)).expect("tables").is_none());
    invariants::check(&fs.tables);
}

#[test]
fn the_tree_itself_stays() {
    let mut fs = start();
    for name in ["by-name", "rejected"] {
        let gone = fs.run(Op::Rmdir { parent: JOBS, name: name.into() });
        assert_eq!(gone.map_err(|e| e.kind()), Err(Kind::NotPermitted));
    }
}

#[test]
fn the_end_of_a_node_settles_every_job() {
    let mut fs = start();
    let ids: Vec<_> = [GOOD, GOOD, GOOD, AGAIN, GOOD]
        .iter()
        .map(|text| submit(&mut fs, "x", text, None).expect("accepted").id)
        .collect();
    for &id in &ids[1..] {
        run(&mut fs, JobOp::Ready(id)).expect("ready");
    }
    for &id in &ids[2..] {
        begin(&mut fs, id).expect("starts");
    }
    run(&mut fs, JobOp::Cancel(ids[4])).expect("cancelled");
    fs.run(Op::Job(JobOp::Open { resumes: false })).expect("opens");
    let states: Vec<_> = ids.iter().map(|&id| job(&fs.tables, id).expect("kept").state).collect();
    use JobState::{Cancelled, Lost, Ready};
    assert_eq!(states, [Lost, Ready, Lost, Ready, Cancelled]);
    for attempt in 2..=limits::JOB_ATTEMPTS_MAX {
        assert_eq!(begin(&mut fs, ids[3]).map(|job| job.attempt), Ok(attempt));
        fs.run(Op::Job(JobOp::Open { resumes: false })).expect("opens");
    }
    assert_eq!(job(&fs.tables, ids[3]).map(|job| job.state), Ok(Lost), "it had its attempts");
    assert_eq!(active(&fs.tables, JobId(0), 9).map(|jobs| jobs.len()), Ok(1));
}

#[test]
fn what_is_being_dropped_is_so_when_its_mount_goes_on() {
    let mut fs = start();
    let cred = Cred { uid: 0, gid: 0 };
    let (kind, mode, umask, rdev) = (FileKind::File, 0o600, 0, 0);
    let file =
        Op::Create { parent: JOBS, name: "a".into(), kind, mode, umask, cred, rdev, target: Vec::new() };
    fs.run(file).expect("create");
    let [dropped, closed] = ["a", "b"].map(|name| submit(&mut fs, name, GOOD, None).expect("accepted").id);
    fs.run(Op::Job(JobOp::Open { resumes: true })).expect("opens");
    let state = |id| job(&fs.tables, id).map(|job| job.state);
    assert_eq!((state(dropped), state(closed)), (Ok(JobState::New), Ok(JobState::Ready)));
}

#[test]
fn jobs_are_bounded() {
    let mut fs = start();
    submit(&mut fs, "x", GOOD, None).expect("accepted");
    let full = [1, limits::JOBS_MAX].iter().flat_map(|v| v.to_le_bytes()).collect();
    fs.tables.write([(keys::JOBS.to_vec(), Some(full))].into());
    assert_eq!(submit(&mut fs, "y", GOOD, None).map_err(|e| e.kind()), Err(Kind::Busy));
    rmdir(&mut fs, JobId(1)).expect("removed");
    assert_eq!(submit(&mut fs, "y", GOOD, None).map(|job| job.id), Ok(JobId(2)));
}

#[test]
fn any_order_of_commands_keeps_the_records_together() {
    for_seeds(4, any_order);
}

fn any_order(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut fs = start();
    let mut known = Vec::new();
    for step in 0..1000 {
        let id = JobId(1 + rng.within(0..8 + known.len() as u64 / 8));
        let before = job(&fs.tables, id).ok();
        // Whatever is refused is refused cleanly: that is what is checked below.
        let _ = match rng.within(0..9) {
            0 | 1 => submit(&mut fs, ["a", "b"][rng.within(0..2) as usize], GOOD, None)
                .map(|job| known.push(job.id)),
            2 => submit(&mut fs, "a", AGAIN, Some(id)).map(drop),
            3 => run(&mut fs, JobOp::Withdraw(id)).map(drop),
            4 => run(&mut fs, JobOp::Ready(id)).map(drop),
            5 => begin(&mut fs, id).map(drop),
            6 => end(&mut fs, id, 1 + rng.within(0..2) as u32, rng.within(0..2) as i32).map(drop),
            7 => run(&mut fs, JobOp::Cancel(id)).map(drop),
            _ => rmdir(&mut fs, id).map(drop),
        };
        let after = job(&fs.tables, id).ok();
        if let (Some(before), Some(after)) = (before, after) {
            assert!(
                !before.state.is_ended() || before == after,
                "seed {seed}, step {step}: {before:?} {after:?}"
            );
            assert!(after.attempt <= before.attempt + 1, "seed {seed}, step {step}: {after:?}");
        }
        if step % 100 == 0 {
            check(&fs, seed);
        }
    }
    check(&fs, seed);
}

/// Each job has its records and its directory, and nothing else has.
fn check(fs: &Fs, seed: u64) {
    invariants::check(&fs.tables);
    let dirs: Vec<_> = read::list(&fs.tables, JOBS, 0, limits::LIST_ENTRIES_MAX)
        .expect("lists")
        .into_iter()
        .filter(|entry| entry.attr.kind == FileKind::Dir && entry.name.iter().all(u8::is_ascii_digit))
        .map(|entry| entry.attr.ino)
        .collect();
    let of_table =
        |table: u8, len| fs.tables.iter().filter(|(key, _)| key[0] == table && key.len() == len).count();
    let jobs: Vec<_> =
        dirs.iter().map(|&dir| of_dir(&fs.tables, dir).expect("reads").expect("a job")).collect();
    assert_eq!((of_table(b'J', 9), of_table(b'J', 10)), (jobs.len(), jobs.len()), "seed {seed}");
    let running = jobs.iter().filter(|&&id| !job(&fs.tables, id).expect("kept").state.is_ended()).count();
    assert_eq!(
        (of_table(b'W', 9), active(&fs.tables, JobId(0), 9999).map(|all| all.len())),
        (running, Ok(running))
    );
    let counters = fs.tables.get(keys::JOBS).expect("tables").unwrap_or_else(|| vec![0; 16]);
    assert_eq!(
        u64::from_le_bytes(counters[8..16].try_into().expect("8 bytes")),
        jobs.len() as u64,
        "seed {seed}"
    );
}

#[test]
fn the_plan_ends_what_must_end_and_fills_the_slots() {
    let mut fs = start();
    let mut jobs: Vec<_> = (0..4).map(|_| submit(&mut fs, "x", GOOD, None).expect("accepted")).collect();
    let run = |id, until_ms, asked_ms| Run { id, attempt: 1, until_ms, asked_ms, forced: false };
    for (job, state) in
        jobs.iter_mut().zip([JobState::Running, JobState::Ready, JobState::Ready, JobState::New])
    {
        job.state = state;
    }
    let id = |n: usize| JobId(n as u64 + 1);
    assert_eq!(plan(0, &jobs, &[run(id(0), None, None)], 2), [Step::Start(id(1))]);
    assert_eq!(plan(0, &jobs, &[], 9), [Step::Start(id(1)), Step::Start(id(2))]);
    assert_eq!(plan(9, &jobs[..1], &[run(id(0), Some(10), None)], 2), []);
    assert_eq!(plan(10, &jobs[..1], &[run(id(0), Some(10), None)], 2), [Step::Ask(id(0))]);
    assert_eq!(plan(9 + GRACE_MS, &jobs[..1], &[run(id(0), Some(10), Some(10))], 2), []);
    assert_eq!(plan(10 + GRACE_MS, &jobs[..1], &[run(id(0), Some(10), Some(10))], 2), [Step::Force(id(0))]);
    let forced = Run { forced: true, ..run(id(0), Some(10), Some(10)) };
    assert_eq!(plan(99_999, &jobs[..1], &[forced], 2), []);
    assert_eq!(plan(0, &[], &[run(id(0), None, None)], 2), [Step::Force(id(0))], "removed");
    jobs[0].cancel = true;
    assert_eq!(plan(0, &jobs[..1], &[run(id(0), None, None)], 2), [Step::Ask(id(0))]);
}
