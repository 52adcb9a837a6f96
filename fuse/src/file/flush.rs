//! Writing buffers out: the buffers of many files become few stripes, then each file's commit.

use std::sync::atomic::{AtomicUsize, Ordering};

use kos_types::limits::{GROUP_MAX, INLINE_BYTES_MAX};
use kos_types::{Attr, Error, Fabric, Ino, Kind, Op, Policy, Reply, Result, StripeId};

use super::deadline::{Deadline, Held};
use super::dirty::Dirty;
use super::node::{Node, Taken, attr_of};
use super::pack::{Packed, pack};

/// Stripes coded at once by one flush.
const STRIPES_AT_ONCE: usize = 4;
const SLOW: &str = "flush: the fabric is too slow; the bytes stay in memory";

/// One file of a flush.
struct Job<'a> {
    node: &'a Node,
    taken: Taken,
    policy: Policy,
    /// The file is so small that its bytes go with the metadata.
    inline: bool,
    /// No other flush of this file, and no change of what is committed, until it is done.
    _turn: Held<'a>,
}

/// Flush `nodes`, which are in the order of their inodes and each there once. Answers the bytes
/// that left memory and each file's error; what failed, or was not begun at the deadline, is dirty
/// again; what is of a file that is gone is dropped.
pub(crate) fn flush<'a, F: Fabric>(
    fabric: &F,
    nodes: impl Iterator<Item = &'a Node>,
    deadline: Deadline,
) -> (usize, Vec<(&'a Node, Error)>) {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    let mut failed = Vec::new();
    let mut gone = 0;
    for node in nodes {
        let turn = match node.turn(deadline) {
            Ok(turn) => turn,
            Err(e) => {
                failed.push((node, e));
                continue;
            }
        };
        let Some(taken) = node.take() else { continue };
        let how = fabric.policy(node.ino()).and_then(|policy| {
            let inline = is_small(fabric, node.ino(), &taken)?;
            Ok((policy, inline))
        });
        match how {
            Ok((policy, inline)) => jobs.push(Job { node, taken, policy, inline, _turn: turn }),
            Err(e) => {
                let (left, error) = settle(fabric, node, taken, Err(e));
                gone += left;
                failed.extend(error.map(|e| (node, e)));
            }
        }
    }
    while let Some(first) = jobs.first() {
        let policy = first.policy;
        let (same, other) = jobs.into_iter().partition(|job| job.policy == policy);
        jobs = other;
        let mut results = write(fabric, policy, &same.iter().collect::<Vec<_>>(), deadline);
        // A daemon that was started anew has lost stripes that nothing names yet; and a commit that was
        // refused takes those along that it would have brought for others.
        let (stale, jobs): (Vec<usize>, Vec<&Job<'_>>) =
            same.iter().enumerate().filter(|(at, _)| is_stale(&results[*at])).unzip();
        for (at, result) in stale.into_iter().zip(write(fabric, policy, &jobs, deadline)) {
            results[at] = result;
        }
        for (job, result) in same.into_iter().zip(results) {
            let (left, error) = settle(fabric, job.node, job.taken, result);
            gone += left;
            failed.extend(error.map(|e| (job.node, e)));
        }
    }
    (gone, failed)
}

/// Whether the whole file fits its metadata once this is committed. Another mount may make it longer
/// meanwhile: then its head stays there.
fn is_small<F: Fabric>(fabric: &F, ino: Ino, taken: &Taken) -> Result<bool> {
    let max = INLINE_BYTES_MAX as u64;
    let end = taken.dirty.iter().last().map_or(0, |(off, bytes)| off + bytes.len() as u64);
    // What is known here first: the committed size may be a question to a daemon.
    Ok(end > 0 && end.max(taken.size.unwrap_or(0)) <= max && fabric.attr(ino)?.size <= max)
}

/// End one file's flush. Answers the bytes that left memory, and the error that was reported.
fn settle<F: Fabric>(fabric: &F, node: &Node, taken: Taken, result: Result<Attr>) -> (usize, Option<Error>) {
    let error = result.as_ref().err().cloned();
    // Another mount took its last name.
    let removed = is_stale(&result) && is_stale(&fabric.attr(node.ino()));
    let gone = if removed { node.settle_gone(&taken) } else { node.settle(taken, result) };
    fabric.release(node.ino(), gone as u64);
    let error = error.filter(|_| !removed);
    if let Some(e) = &error {
        report(fabric, node, e);
    }
    (gone, error)
}

/// Tries go on each second: only the first failure of a row is told.
fn report<F: Fabric>(fabric: &F, node: &Node, e: &Error) {
    if node.begins_failing() {
        let what = format!("inode {}: {e}; its bytes stay in memory and are tried again", node.ino().0);
        fabric.report("unflushed", &what);
    }
}

fn is_stale<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == Kind::Stale)
}

/// Write and commit files of one policy; an answer for each.
fn write<F: Fabric>(fabric: &F, policy: Policy, jobs: &[&Job<'_>], deadline: Deadline) -> Vec<Result<Attr>> {
    let none = Dirty::default();
    let dirty: Vec<_> = jobs.iter().map(|job| if job.inline { &none } else { &*job.taken.dirty }).collect();
    let plan = pack(&dirty);
    let packed = &plan.stripes;
    let ids = write_stripes(fabric, policy, packed, deadline);
    // Which file's commit brings a stripe in; those of the others find it there.
    let mut brought_by = vec![None; packed.len()];
    let mut ops = Vec::with_capacity(jobs.len());
    let mut commit = |file: usize, job: &Job<'_>| {
        let (mut stripes, mut extents) = (Vec::new(), Vec::new());
        for (at, (packed, id)) in packed.iter().zip(&ids).enumerate() {
            let mut own = packed.extents(file, StripeId(0)).peekable();
            if own.peek().is_none() {
                continue;
            }
            let id = id.clone()?;
            extents.extend(packed.extents(file, id));
            if *brought_by[at].get_or_insert(file) == file {
                stripes.push((id, policy, packed.data.len() as u64));
            }
        }
        let holes = plan.holes(file);
        let own = job.inline.then(|| job.taken.dirty.iter().map(|(off, bytes)| (off, bytes.to_vec())));
        let inline = own.into_iter().flatten().collect();
        let (ino, size_min, mtime) = (job.node.ino(), job.taken.size.unwrap_or(0), job.taken.mtime);
        ops.push(Op::Commit { ino, stripes, holes, extents, inline, size_min, mtime });
        Ok(())
    };
    let built: Vec<Result<()>> = jobs.iter().enumerate().map(|(file, job)| commit(file, job)).collect();
    let mut replies = propose(fabric, ops, deadline).into_iter();
    let no_answer = || Err(Error::new(Kind::Io, "flush: no answer"));
    let answer = |built: Result<()>| built.and_then(|()| attr_of(replies.next().unwrap_or_else(no_answer)?));
    let results: Vec<Result<Attr>> = built.into_iter().map(answer).collect();
    // Written beside others that did not fit: each try writes new ones.
    let is_in = |by: Option<usize>| by.is_some_and(|file: usize| results[file].is_ok());
    let given_up = ids.iter().zip(&brought_by).filter(|(_, by)| !is_in(**by));
    given_up.filter_map(|(id, _)| id.as_ref().ok()).for_each(|&id| fabric.drop_stripe(id));
    results
}

/// Propose commits, as many together as the fabric takes.
fn propose<F: Fabric>(fabric: &F, mut ops: Vec<Op>, deadline: Deadline) -> Vec<Result<Reply>> {
    let mut replies = Vec::with_capacity(ops.len());
    while !ops.is_empty() {
        let rest = ops.split_off(ops.len().min(GROUP_MAX));
        match deadline.check(SLOW) {
            Ok(()) => replies.extend(fabric.propose_all(ops)),
            Err(e) => replies.extend(ops.iter().map(|_| Err(e.clone()))),
        }
        ops = rest;
    }
    replies
}

/// Write stripes, a few at once; an answer for each.
fn write_stripes<F: Fabric>(
    fabric: &F,
    policy: Policy,
    packed: &[Packed<'_>],
    deadline: Deadline,
) -> Vec<Result<StripeId>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut written = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(packed) = packed.get(at) else { return written };
            let id = deadline.check(SLOW).and_then(|()| fabric.write_stripe(policy, &packed.data));
            written.push((at, id));
        }
    };
    let mut ids = vec![Err(Error::new(Kind::Io, "flush: panicked")); packed.len()];
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..STRIPES_AT_ONCE.min(packed.len())).map(|_| scope.spawn(work)).collect();
        let own = work();
        let written = others.into_iter().filter_map(|other| other.join().ok()).flatten().chain(own);
        written.for_each(|(at, id)| ids[at] = id);
    });
    ids
}
