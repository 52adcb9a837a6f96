//! /dev/fuse: a request is read, and its answer written to the descriptor that it came by.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::Fabric;
use rustix::io::Errno;

use super::dispatch::Dispatch;
use super::ioctl;
use super::reply::Reply;
use crate::session::protocol::{HEADER_BYTES, Header, OutHeader, args_bytes, opcode, split};
use crate::signals::is_killed;

const PAGE_BYTES: usize = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One descriptor of a connection, and the thread that serves it.
#[derive(Debug)]
pub(super) struct Channel {
    device: Arc<OwnedFd>,
    /// Requests without an answer that may be given up, and whose they are.
    pending: Mutex<Vec<(u64, u32)>>,
}

/// All of a connection.
#[derive(Debug)]
pub(super) struct Channels {
    first: Arc<Channel>,
    others: Mutex<Vec<Arc<Channel>>>,
    /// Requests that may be given up, and the threads whose signal did not end them: the kernel does not tell of another.
    signalled: Mutex<Vec<(u64, u32)>>,
}

impl Channels {
    pub(super) fn new(device: Arc<OwnedFd>) -> Self {
        Self { first: Arc::new(Channel::new(device)), others: Mutex::default(), signalled: Mutex::default() }
    }

    /// One that is there already.
    pub(super) fn add(&self, device: OwnedFd) {
        lock(&self.others).push(Arc::new(Channel::new(Arc::new(device))));
    }

    pub(super) fn first(&self) -> &Arc<Channel> {
        &self.first
    }

    /// One more.
    pub(super) fn more(&self) -> io::Result<()> {
        self.add(ioctl::clone(&self.first.device)?);
        Ok(())
    }

    pub(super) fn all(&self) -> Vec<Arc<Channel>> {
        let others = lock(&self.others);
        [Arc::clone(&self.first)].into_iter().chain(others.iter().cloned()).collect()
    }

    /// Answer in another thread's place, which may come by whichever descriptor the request came. `NotFound` when it
    /// has been answered.
    pub(super) fn answer(&self, unique: u64, errno: i32) -> io::Result<()> {
        let text = OutHeader::error(unique, errno).encode();
        let mut told = Err(io::ErrorKind::NotFound.into());
        for channel in self.all() {
            match rustix::io::write(&channel.device, &text) {
                Ok(_) => return Ok(()),
                // Not by this one.
                Err(Errno::NOENT) => {}
                Err(e) => told = Err(e.into()),
            }
        }
        told
    }

    /// A thread has a signal. If it ends by it, its request is answered EINTR, unless that may not be given up.
    pub(super) fn interrupt(&self, unique: u64) {
        let thread = self.all().iter().find_map(|channel| channel.thread_of(unique));
        if let Some(thread) = thread {
            lock(&self.signalled).push((unique, thread));
            self.look();
        }
    }

    /// Whether threads that had a signal end by another one.
    pub(super) fn look(&self) {
        let all = self.all();
        lock(&self.signalled).retain(|&(unique, thread)| {
            let Some(channel) = all.iter().find(|channel| channel.thread_of(unique).is_some()) else {
                return false;
            };
            let ends = is_killed(thread);
            if ends && channel.forget(unique) {
                channel.give_up(unique);
            }
            !ends
        });
    }
}

/// Requests that change nothing, and may be answered before they are done.
pub(super) const fn may_be_given_up(op: u32) -> bool {
    matches!(
        op,
        opcode::READ
            | opcode::GETATTR
            | opcode::GETXATTR
            | opcode::LISTXATTR
            | opcode::READLINK
            | opcode::READDIR
            | opcode::LSEEK
            | opcode::STATFS
            | opcode::STATX
    )
}

impl Channel {
    fn new(device: Arc<OwnedFd>) -> Self {
        Self { device, pending: Mutex::default() }
    }

    fn thread_of(&self, unique: u64) -> Option<u32> {
        lock(&self.pending).iter().find(|pending| pending.0 == unique).map(|pending| pending.1)
    }

    /// A request is answered now. Whether it was not before.
    pub(super) fn forget(&self, unique: u64) -> bool {
        let mut pending = lock(&self.pending);
        // Few, and the newest most often.
        let at = pending.iter().rposition(|other| other.0 == unique);
        at.map(|at| pending.swap_remove(at)).is_some()
    }

    fn give_up(&self, unique: u64) {
        match rustix::io::write(&self.device, &OutHeader::error(unique, libc::EINTR).encode()) {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => {}
            Err(e) => kos_types::log!("kos-fuse: request {unique} is not given up: {e}"),
        }
    }

    pub(super) fn device(&self) -> &Arc<OwnedFd> {
        &self.device
    }

    /// Serve requests until the mount is gone.
    pub(super) fn serve<F: Fabric + 'static>(self: &Arc<Self>, dispatch: &Dispatch<F>) -> io::Result<()> {
        let mut room = vec![0_u8; dispatch.agreed.buffer_bytes() + 2 * PAGE_BYTES];
        if dispatch.requests.fs.outlives.load(Ordering::Relaxed) {
            // All its pages are there from now on: one that is just being killed gets no more, and the kernel would take a
            // request for failed that it cannot hand over.
            room.fill(1);
        }
        // What is written begins with a page: the kernel copies pages, and some processors copy at a quarter of their
        // speed to where nothing is aligned.
        let head = HEADER_BYTES + args_bytes(opcode::WRITE, &dispatch.agreed);
        let to_page = (room.as_ptr().addr() + head).wrapping_neg() % PAGE_BYTES;
        let buffer = &mut room[to_page..];
        loop {
            let len = match rustix::io::read(&self.device, &mut *buffer) {
                Ok(len) => len,
                // Interrupted here, or by who asked: before it was read, or as there is nothing.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                // Unmounted, or aborted.
                Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let request = &buffer[..len];
            let header = Header::decode(request).map_err(io::Error::other)?;
            let may_end = may_be_given_up(header.opcode);
            if may_end {
                lock(&self.pending).push((header.unique, header.pid));
            }
            let reply = Reply::to(self, header.unique, may_end);
            match split(header.opcode, &request[HEADER_BYTES..], &dispatch.agreed) {
                Ok((args, payload)) => {
                    // The signal may have come by another thread of ours, and have been faster.
                    if may_end && dispatch.requests.fs.signals.was_told(header.unique) {
                        dispatch.interrupt(header.unique);
                    }
                    dispatch.handle(&header, args, payload, reply);
                }
                Err(e) => {
                    kos_types::log!("kos-fuse: request {} of the kernel: {e}", header.opcode);
                    reply.error(libc::EIO);
                }
            }
        }
    }
}
