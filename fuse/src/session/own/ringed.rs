//! Requests that come by rings: what most likely ends soon is done at once, in the ring's own thread.

use std::sync::{Arc, OnceLock};

use kos_types::{Fabric, Ino};

use super::device::may_be_given_up;
use super::dispatch::Dispatch;
use super::pool::Pool;
use super::reply::Reply;
use super::ring::{Handler, RingReply};
use crate::session::protocol::{HEADER_BYTES, Header, opcode};

/// What rings hand requests to. The terms are known later than the rings.
pub(super) struct Ringed<F> {
    pub(super) dispatch: OnceLock<Arc<Dispatch<F>>>,
    pub(super) pool: Arc<Pool>,
}

/// What waits for disks, or for as much as others have written.
const fn takes_long(op: u32) -> bool {
    matches!(
        op,
        opcode::FSYNC
            | opcode::FSYNCDIR
            | opcode::SETATTR
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::COPY_FILE_RANGE_64
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::LSEEK
            | opcode::CREATE
            | opcode::TMPFILE
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::SYMLINK
            | opcode::LINK
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
    )
}

impl<F: Fabric + 'static> Handler for Ringed<F> {
    fn handle(&self, header: &[u8; HEADER_BYTES], args: &[u8], payload: &[u8], answer: RingReply) {
        let (Some(dispatch), Ok(header)) = (self.dispatch.get(), Header::decode(header)) else {
            return answer.error(libc::EIO);
        };
        let fs = &dispatch.requests.fs;
        // Beside other mounts nearly everything may wait for a lease, and elsewhere for an answer.
        let may_wait = fs.is_remote
            || fs.fabric.shared()
            || takes_long(header.opcode)
            || header.opcode == opcode::SETLKW
            || header.opcode == opcode::READ && fs.is_wait(Ino(header.node));
        if may_wait && !answer.may_wait() {
            return answer.error(libc::EAGAIN);
        }
        let was_slow = || answer.may_wait() && self.pool.slow.is_slow(&header);
        if fs.is_remote || takes_long(header.opcode) || was_slow() {
            let may_end = may_be_given_up(header.opcode);
            self.pool.put(&header, (args, payload), may_end, answer);
            // The signal comes by /dev/fuse, and may have been faster.
            if may_end && fs.signals.was_told(header.unique) {
                dispatch.interrupt(header.unique);
            }
            return;
        }
        let reply = Reply::to_ring(header.unique, answer);
        self.pool.slow.watch(&header, || dispatch.handle(&header, args, payload, reply));
    }
}
