//! /dev/fuse: a request is read, and its answer written to the descriptor that it came by.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kos_types::Fabric;
use rustix::io::Errno;

use super::dispatch::Dispatch;
use super::ioctl;
use super::reply::Reply;
use crate::session::protocol::{HEADER_BYTES, Header, OutHeader, args_bytes, opcode, split};

const PAGE_BYTES: usize = 4096;

/// One descriptor of a connection, and the thread that serves it.
#[derive(Debug)]
pub(super) struct Channel {
    device: OwnedFd,
    /// The request in this thread's hands that may be given up: 0 for none.
    current: AtomicU64,
}

/// All of a connection.
#[derive(Debug)]
pub(super) struct Channels {
    first: Arc<Channel>,
    others: Mutex<Vec<Arc<Channel>>>,
}

impl Channels {
    pub(super) fn new(device: OwnedFd) -> Self {
        Self { first: Arc::new(Channel::new(device)), others: Mutex::default() }
    }

    pub(super) fn first(&self) -> &Arc<Channel> {
        &self.first
    }

    /// One more.
    pub(super) fn more(&self) -> io::Result<Arc<Channel>> {
        let channel = Arc::new(Channel::new(ioctl::clone(&self.first.device)?));
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&channel));
        Ok(channel)
    }

    fn all(&self) -> Vec<Arc<Channel>> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Whether a thread has this request in its hands, and it may be given up.
    pub(super) fn is_current(&self, unique: u64) -> bool {
        self.all().iter().any(|channel| channel.current.load(Ordering::SeqCst) == unique)
    }
}

/// Requests that change nothing, and may be answered before they are done.
const fn may_be_given_up(op: u32) -> bool {
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
    const fn new(device: OwnedFd) -> Self {
        Self { device, current: AtomicU64::new(0) }
    }

    pub(super) const fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Serve requests until the mount is gone.
    pub(super) fn serve<F: Fabric + 'static>(self: &Arc<Self>, dispatch: &Dispatch<F>) -> io::Result<()> {
        let mut room = vec![0_u8; dispatch.agreed.buffer_bytes() + 2 * PAGE_BYTES];
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
            let reply = Reply::to(self, header.unique);
            match split(header.opcode, &request[HEADER_BYTES..], &dispatch.agreed) {
                Ok((args, payload)) => {
                    if may_be_given_up(header.opcode) {
                        self.current.store(header.unique, Ordering::SeqCst);
                    }
                    dispatch.handle(&header, args, payload, reply);
                    self.current.store(0, Ordering::SeqCst);
                }
                Err(e) => {
                    kos_types::log!("kos-fuse: request {} of the kernel: {e}", header.opcode);
                    reply.error(libc::EIO);
                }
            }
        }
    }
}
