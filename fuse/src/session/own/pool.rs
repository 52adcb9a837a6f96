//! Requests of a ring that may wait for others: its threads hand them over and go on. There are never more than the rings have
//! entries.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use kos_types::Fabric;

use super::dispatch::Dispatch;
use super::reply::Reply;
use super::ring::RingReply;
use super::slow::Slow;
use crate::session::protocol::Header;
use crate::signals::is_killed;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer of a request that was handed over: whoever takes it gives it.
#[derive(Debug)]
pub(super) struct Kept {
    reply: Mutex<Option<RingReply>>,
    unique: u64,
    thread: u32,
    /// It changes nothing: it may be answered before it is done.
    may_end: bool,
}

impl Kept {
    pub(super) fn take(&self) -> Option<RingReply> {
        lock(&self.reply).take()
    }
}

struct Job {
    header: Header,
    args: Vec<u8>,
    payload: Vec<u8>,
    reply: Reply,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Everything without an answer, for signals and for what takes too long.
    kept: Vec<Arc<Kept>>,
    /// Those whose threads had a signal that did not end them.
    signalled: Vec<Arc<Kept>>,
    ended: bool,
}

/// The threads, and what waits for them.
#[derive(Default)]
pub(super) struct Pool {
    state: Mutex<State>,
    more: Condvar,
    /// What is handed over for once.
    pub(super) slow: Slow,
}

impl Pool {
    pub(super) fn put(
        &self,
        header: &Header,
        (args, payload): (&[u8], &[u8]),
        may_end: bool,
        reply: RingReply,
    ) {
        let kept = Arc::new(Kept {
            reply: Mutex::new(Some(reply)),
            unique: header.unique,
            thread: header.pid,
            may_end,
        });
        let reply = Reply::to_kept(header.unique, Arc::clone(&kept));
        let job = Job { header: *header, args: args.to_vec(), payload: payload.to_vec(), reply };
        let mut state = lock(&self.state);
        state.kept.retain(|kept| lock(&kept.reply).is_some());
        state.kept.push(kept);
        state.jobs.push_back(job);
        drop(state);
        self.more.notify_one();
    }

    /// Answer in another's place; `NotFound` when it is not here.
    pub(super) fn answer(&self, unique: u64, errno: i32) -> io::Result<()> {
        let kept = lock(&self.state).kept.iter().find(|kept| kept.unique == unique).cloned();
        let reply = kept.and_then(|kept| kept.take()).ok_or(io::ErrorKind::NotFound)?;
        reply.error(errno);
        Ok(())
    }

    /// As [`Channels::interrupt`](super::device::Channels::interrupt).
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = lock(&self.state);
        let found = state.kept.iter().find(|kept| kept.unique == unique && kept.may_end).cloned();
        state.signalled.extend(found);
        drop(state);
        self.look();
    }

    /// Whether threads that had a signal end by another one.
    pub(super) fn look(&self) {
        lock(&self.state).signalled.retain(|kept| {
            if !is_killed(kept.thread) {
                return lock(&kept.reply).is_some();
            }
            if let Some(reply) = kept.take() {
                reply.error(libc::EINTR);
            }
            false
        });
    }

    pub(super) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.jobs.clear();
        drop(state);
        self.more.notify_all();
    }

    /// Serve with so many threads until the end.
    pub(super) fn start<F: Fabric + 'static>(
        self: &Arc<Self>,
        threads: usize,
        dispatch: &Arc<Dispatch<F>>,
    ) -> io::Result<()> {
        for at in 0..threads {
            let (pool, dispatch) = (Arc::clone(self), Arc::clone(dispatch));
            let work = move || {
                while let Some(job) = pool.next() {
                    let Job { header, args, payload, reply } = job;
                    pool.slow.watch(&header, || dispatch.handle(&header, &args, &payload, reply));
                }
            };
            thread::Builder::new().name(format!("fuse-work-{at}")).spawn(work)?;
        }
        Ok(())
    }

    fn next(&self) -> Option<Job> {
        let waiting = |state: &mut State| state.jobs.is_empty() && !state.ended;
        let state = self.more.wait_while(lock(&self.state), waiting);
        state.unwrap_or_else(PoisonError::into_inner).jobs.pop_front()
    }
}
