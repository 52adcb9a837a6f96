//! The one answer that a request gets.

use std::io::IoSlice;
use std::sync::Arc;

use rustix::io::Errno;

use super::device::Channel;
use crate::session::protocol::{OUT_HEADER_BYTES, OutHeader};
use crate::session::requests::Answer;
use crate::session::room;

/// Gives the answer. Dropped without, it is EIO: a program waits for it.
#[derive(Debug)]
pub(super) struct Reply {
    unique: u64,
    to: Option<Arc<Channel>>,
    /// Somebody else may have given it meanwhile.
    may_end: bool,
}

impl Reply {
    /// `may_end`: the channel has it among those that may be given up.
    pub(super) fn to(channel: &Arc<Channel>, unique: u64, may_end: bool) -> Self {
        Self { unique, to: Some(Arc::clone(channel)), may_end }
    }

    /// There is none for this request.
    pub(super) fn none(mut self) {
        self.to = None;
    }

    pub(super) fn error(mut self, errno: i32) {
        self.send(&OutHeader::error(self.unique, errno).encode(), &[]);
    }

    pub(super) fn bytes(mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.send(&OutHeader::answer(self.unique, bytes.len()).encode(), bytes);
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
    pub(super) fn fill(self, len: usize, fill: impl FnOnce(&mut [u8]) -> Answer<usize>) {
        room::with(len, |out| match fill(out) {
            Ok(len) => self.bytes(&out[..len]),
            Err(e) => self.error(e),
        });
    }

    fn send(&mut self, header: &[u8; OUT_HEADER_BYTES], body: &[u8]) {
        let Some(channel) = self.to.take() else { return };
        if self.may_end && !channel.forget(self.unique) {
            return;
        }
        let parts = [IoSlice::new(header), IoSlice::new(body)];
        let parts = if body.is_empty() { &parts[..1] } else { &parts[..] };
        match rustix::io::writev(channel.device(), parts) {
            // Who asked is gone, or was answered in our place; or the mount is gone.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => {}
            Err(e) => {
                kos_types::log!("kos-fuse: an answer of {} bytes is refused: {e}", body.len());
                let error = OutHeader::error(self.unique, libc::EIO).encode();
                if !body.is_empty() && rustix::io::write(channel.device(), &error).is_err() {
                    kos_types::log!("kos-fuse: request {} stays without an answer", self.unique);
                }
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.to.is_some() {
            self.send(&OutHeader::error(self.unique, libc::EIO).encode(), &[]);
        }
    }
}
