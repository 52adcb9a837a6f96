//! The memory that an entry of a queue shares with the kernel.
//!
//! It belongs to the kernel or to us, by turns: to the kernel from the SQE that registers the entry or commits its
//! answer until that SQE's CQE; to us from there until the next commit. The kernel touches it only in the thread that
//! submitted the SQE, while that thread is in `io_uring_enter`: it copies to and from the caller's addresses.

use std::io;
use std::slice;

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

use crate::session::protocol::ring::{ENTRY_AT, Entry, HEADERS_BYTES, IN_OUT_AT, OP_IN_AT, PART_BYTES};
use crate::session::protocol::{HEADER_BYTES, OUT_HEADER_BYTES, OutHeader};

/// Where the two `iovec` lie that tell the kernel of the rest.
const IOVECS_AT: usize = 320;
/// How many they are.
pub(super) const IOVECS: u32 = 2;
const PAGE_BYTES: usize = 4096;
/// Headers and iovecs have a page of their own. The payload begins in the middle of the next one: programs' memory begins
/// with a page, or a few bytes behind as malloc's does, and a processor copies at half its speed to where the address is
/// slightly higher, modulo a page, than where it copies from. In the middle neither direction meets that.
const PAYLOAD_AT: usize = PAGE_BYTES + PAGE_BYTES / 2;

/// One entry's memory: headers, and the payload of a request, then of its answer.
#[derive(Debug)]
pub(super) struct Buffers {
    map: MmapRaw,
    payload_bytes: usize,
}

/// A request as the kernel left it.
pub(super) struct Request<'a> {
    pub(super) header: &'a [u8; HEADER_BYTES],
    /// The operation's structure, and behind it what the requests before left there.
    pub(super) args: &'a [u8],
    pub(super) payload: &'a [u8],
    /// What the answer's commit has to name.
    pub(super) commit_id: u64,
}

impl Request<'_> {
    /// The inode it is about.
    pub(super) fn node(&self) -> u64 {
        let mut node = [0; 8];
        node.copy_from_slice(&self.header[16..24]);
        u64::from_ne_bytes(node)
    }

    /// READ or WRITE, which only regular files have.
    pub(super) fn is_of_file(&self) -> bool {
        [15u32, 16].iter().any(|opcode| self.header[4..8] == opcode.to_ne_bytes())
    }
}

impl Buffers {
    /// For payloads of up to `payload_bytes`. Pages are there once they are touched.
    ///
    /// # Errors
    /// When there is no room in the address space.
    pub(super) fn new(payload_bytes: usize) -> io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(PAYLOAD_AT + payload_bytes).map_anon()?);
        let buffers = Self { map, payload_bytes };
        let base = buffers.map.as_mut_ptr();
        let iovecs = [
            libc::iovec { iov_base: base.cast(), iov_len: HEADERS_BYTES },
            libc::iovec { iov_base: base.wrapping_add(PAYLOAD_AT).cast(), iov_len: payload_bytes },
        ];
        #[expect(unsafe_code, reason = "the kernel reads them by their address")]
        // SAFETY: the first page of the map, which nobody else knows yet, has room for them there, aligned.
        unsafe {
            base.add(IOVECS_AT).cast::<[libc::iovec; IOVECS as usize]>().write(iovecs);
        }
        Ok(buffers)
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Where the kernel finds the two iovecs. They stay as they are.
    pub(super) fn iovecs(&self) -> u64 {
        self.map.as_ptr().wrapping_add(IOVECS_AT) as u64
    }

    /// The request that came last.
    ///
    /// # Safety
    /// The entry is ours, and no answer is written into it while the request lives: not even into the payload, unless
    /// the request has none.
    #[expect(unsafe_code, reason = "whose the memory is, the caller knows")]
    pub(super) unsafe fn request(&self) -> Request<'_> {
        // SAFETY: inside of the map, which lives as long as `self`, and bytes of any value are fine. That nobody writes
        // meanwhile is the caller's promise.
        let headers = unsafe { slice::from_raw_parts(self.map.as_ptr(), HEADERS_BYTES) };
        let entry = Entry::decode(&headers[ENTRY_AT..]).expect("the headers end with an entry");
        let payload_len = (entry.payload_bytes as usize).min(self.payload_bytes);
        // SAFETY: the same, and not a byte where there is no payload: an answer may be written there then.
        let payload = unsafe { slice::from_raw_parts(self.map.as_ptr().add(PAYLOAD_AT), payload_len) };
        let (header, _) = headers.split_first_chunk().expect("288 bytes begin with 40");
        Request {
            header,
            args: &headers[OP_IN_AT..OP_IN_AT + PART_BYTES],
            payload,
            commit_id: entry.commit_id,
        }
    }

    /// Write the answer's payload in place.
    ///
    /// # Safety
    /// The entry is ours, nobody else writes an answer, and the payload is borrowed by nobody: the request had none, or
    /// is done with.
    #[expect(unsafe_code, reason = "whose the memory is, the caller knows")]
    pub(super) unsafe fn with_payload<R>(&self, len: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(len <= self.payload_bytes, "an answer longer than the payload's memory");
        // SAFETY: inside of the map by the assertion; the caller promises that it is ours alone.
        write(unsafe { slice::from_raw_parts_mut(self.map.as_mut_ptr().add(PAYLOAD_AT), len) })
    }

    /// Write the answer's headers: `error` is 0 or a negative errno, `payload_len` bytes of payload are written.
    ///
    /// # Safety
    /// The entry is ours, nobody else writes an answer, and the request is done with.
    #[expect(unsafe_code, reason = "whose the memory is, the caller knows")]
    pub(super) unsafe fn answer(&self, unique: u64, error: i32, payload_len: u32) {
        // SAFETY: inside of the map; the caller promises that it is ours alone.
        let headers = unsafe { slice::from_raw_parts_mut(self.map.as_mut_ptr(), HEADERS_BYTES) };
        let header = OutHeader { error, ..OutHeader::answer(unique, payload_len as usize) };
        headers[IN_OUT_AT..IN_OUT_AT + OUT_HEADER_BYTES].copy_from_slice(&header.encode());
        let entry = Entry { commit_id: unique, payload_bytes: payload_len, ..Entry::default() };
        headers[ENTRY_AT..].copy_from_slice(&entry.encode());
    }

    /// Give back the payload's whole pages. They are zeros when they are touched again.
    ///
    /// # Safety
    /// The entry is the kernel's, no CQE of it waits to be seen, and its own thread calls: then nothing is in there
    /// that anybody wants, and nobody writes meanwhile.
    #[expect(unsafe_code, reason = "whose the memory is, the caller knows")]
    pub(super) unsafe fn drop_payload(&self) -> io::Result<()> {
        let begin = PAYLOAD_AT.next_multiple_of(PAGE_BYTES);
        let len = self.map.len().saturating_sub(begin) / PAGE_BYTES * PAGE_BYTES;
        // SAFETY: whole pages inside of the map, and nobody has a reference to them, as the caller promises.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, begin, len) }
    }
}
