//! The one answer that a request gets.

use std::io::IoSlice;
use std::sync::Arc;

use rustix::io::Errno;

use super::device::Channel;
use super::pool::Kept;
use super::ring::RingReply;
use crate::session::protocol::OutHeader;
use crate::session::requests::Answer;
use crate::session::room;

/// Where a request came from, and its answer goes to.
#[derive(Debug)]
enum Way {
    /// By /dev/fuse. `may_end`: the channel has it among those that may be given up.
    Device { channel: Arc<Channel>, may_end: bool },
    /// By a ring.
    Ring(RingReply),
    /// By a ring, and it was handed to another thread.
    Kept(Arc<Kept>),
}

/// Gives the answer. Dropped without, it is EIO: a program waits for it.
#[derive(Debug)]
pub(super) struct Reply {
    unique: u64,
    to: Option<Way>,
}

impl Reply {
    /// `may_end`: the channel has it among those that may be given up.
    pub(super) fn to(channel: &Arc<Channel>, unique: u64, may_end: bool) -> Self {
        Self { unique, to: Some(Way::Device { channel: Arc::clone(channel), may_end }) }
    }

    pub(super) const fn to_ring(unique: u64, ring: RingReply) -> Self {
        Self { unique, to: Some(Way::Ring(ring)) }
    }

    pub(super) const fn to_kept(unique: u64, kept: Arc<Kept>) -> Self {
        Self { unique, to: Some(Way::Kept(kept)) }
    }

    /// There is none for this request.
    pub(super) fn none(mut self) {
        if let Some(Way::Ring(ring)) = self.to.take() {
            ring.bytes(&[]);
        }
    }

    pub(super) fn error(mut self, errno: i32) {
        self.give(Err(errno));
    }

    pub(super) fn bytes(mut self, bytes: impl AsRef<[u8]>) {
        self.give(Ok(bytes.as_ref()));
    }

    pub(super) fn done(self, answer: Answer<()>) {
        self.answer(answer.map(|()| []));
    }

    pub(super) fn answer(self, answer: Answer<impl AsRef<[u8]>>) {
        match answer {
            Ok(bytes) => self.bytes(bytes),
            Err(e) => self.error(e),
        }
    }

    /// Have up to `len` bytes filled in, and answer with as many of them as that says.
    pub(super) fn fill(mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Answer<usize>) {
        match self.to.take() {
            Some(Way::Ring(ring)) => ring.fill(len, fill),
            Some(Way::Kept(kept)) => {
                let mut bytes = vec![0; len];
                let filled = fill(&mut bytes);
                if let Some(ring) = kept.take() {
                    match filled {
                        Ok(len) => {
                            bytes.truncate(len);
                            ring.owned(bytes);
                        }
                        Err(e) => ring.error(e),
                    }
                }
            }
            to => {
                self.to = to;
                room::with(len, |out| self.answer(fill(out).map(|len| &out[..len])));
            }
        }
    }

    fn give(&mut self, answer: Answer<&[u8]>) {
        match self.to.take() {
            Some(Way::Device { channel, may_end }) if !may_end || channel.forget(self.unique) => {
                send(&channel, self.unique, answer);
            }
            // Answered already.
            None | Some(Way::Device { .. }) => {}
            Some(Way::Ring(ring)) => give_ring(ring, answer),
            Some(Way::Kept(kept)) => {
                if let Some(ring) = kept.take() {
                    give_ring(ring, answer);
                }
            }
        }
    }
}

fn give_ring(ring: RingReply, answer: Answer<&[u8]>) {
    match answer {
        Ok(bytes) => ring.bytes(bytes),
        Err(e) => ring.error(e),
    }
}

fn send(channel: &Channel, unique: u64, answer: Answer<&[u8]>) {
    let (header, body) = match answer {
        Ok(body) => (OutHeader::answer(unique, body.len()), body),
        Err(e) => (OutHeader::error(unique, e), &[][..]),
    };
    let header = header.encode();
    let parts = [IoSlice::new(&header), IoSlice::new(body)];
    let parts = if body.is_empty() { &parts[..1] } else { &parts[..] };
    match rustix::io::writev(channel.device(), parts) {
        // Who asked is gone, or was answered in our place; or the mount is gone.
        Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => {}
        Err(e) => {
            kos_types::log!("kos-fuse: an answer of {} bytes is refused: {e}", body.len());
            let error = OutHeader::error(unique, libc::EIO).encode();
            if !body.is_empty() && rustix::io::write(channel.device(), &error).is_err() {
                kos_types::log!("kos-fuse: request {unique} stays without an answer");
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(Err(libc::EIO));
    }
}
