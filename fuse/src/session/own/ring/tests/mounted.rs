//! A mount of [`Files`] by rings, and programs that use it.

use std::ffi::CString;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, unmount};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::super::super::shake_hands;
use super::super::{Prepared, Refused, Ring, Shape, switch_on};
use super::PAYLOAD_BYTES;
use super::files::{Files, Out, args_bytes};
use crate::session::protocol::{Wanted, flag};

/// Far more than anything takes on a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
const FLAGS: u64 = flag::ASYNC_READ
    | flag::BIG_WRITES
    | flag::ASYNC_DIO
    | flag::PARALLEL_DIROPS
    | flag::MAX_PAGES
    | flag::INIT_EXT
    | flag::OVER_IO_URING;

/// Gone when dropped, whoever still waits for an answer.
pub(super) struct Mounted {
    pub(super) files: Arc<Files>,
    pub(super) refused: Option<Refused>,
    dir: TempDir,
    ender: Option<Box<dyn Fn() + Send + Sync>>,
    ring: Option<Ring>,
    device: Option<thread::JoinHandle<()>>,
    /// Disconnected to end the watch.
    watched: Option<Sender<()>>,
}

/// Whether the kernel has this, now. If not, the test has to end: without a kernel for it there is nothing to test.
pub(super) fn offered() -> bool {
    switch_on().inspect_err(|e| eprintln!("not tested: no FUSE over io_uring: {e}")).is_ok()
}

/// Those that this process may run on.
pub(super) fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("affinity");
    (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)).collect()
}

/// What a program on this processor comes to.
pub(super) fn on<T: Send + 'static>(
    processor: usize,
    run: impl FnOnce() -> T + Send + 'static,
) -> Receiver<T> {
    let (done, result) = mpsc::channel();
    let run = move || {
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(None, &only).expect("a processor that is allowed");
        // The test may have given up.
        let _ = done.send(run());
    };
    thread::Builder::new().spawn(run).expect("thread");
    result
}

pub(super) fn wait_for(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < DEADLINE, "{what}: not in time");
        thread::sleep(Duration::from_millis(2));
    }
}

impl Mounted {
    pub(super) fn ring(shape: Shape) -> Self {
        let mounted = Self::new(shape, |prepared| prepared);
        assert!(mounted.refused.is_none(), "{:?}", mounted.refused);
        mounted
    }

    pub(super) fn new(shape: Shape, change: impl FnOnce(Prepared) -> Prepared) -> Self {
        let dir = tempfile::Builder::new().prefix("kos-ring").tempdir().expect("temporary directory");
        let device =
            File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse: is this root?");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let data = CString::new(data).expect("no NUL");
        rustix::mount::mount("ring", dir.path(), "fuse.ring", MountFlags::empty(), Some(data.as_c_str()))
            .expect("mount");
        let device = Arc::new(OwnedFd::from(device));
        let files = Arc::new(Files::new());
        let mut mounted = Self {
            files: Arc::clone(&files),
            refused: None,
            ender: None,
            ring: None,
            device: None,
            watched: Some(watch(dir.path().into())),
            dir,
        };
        let prepared = change(Ring::prepare(shape, &files).expect("rings"));
        let wanted = Wanted {
            flags: FLAGS,
            max_write: PAYLOAD_BYTES as u32,
            max_readahead: 128 << 10,
            max_pages: (PAYLOAD_BYTES / 4096) as u16,
            max_background: 64,
            ..Wanted::default()
        };
        let agreed = shake_hands(&device, &wanted).expect("INIT");
        assert!(agreed.has(flag::OVER_IO_URING), "FUSE over io_uring is not offered");
        match prepared.start(&device) {
            Ok(ring) => {
                mounted.ender = Some(Box::new(ring.ender()));
                mounted.ring = Some(ring);
            }
            Err(refused) => mounted.refused = Some(refused),
        }
        mounted.device = Some(thread::spawn(move || serve_device(&device, &files)));
        mounted
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unmount, whatever waits for answers, and wait for everything to end.
    pub(super) fn end(mut self) {
        unmount(self.dir.path(), UnmountFlags::FORCE | UnmountFlags::DETACH).expect("unmount");
        let (done, ended) = mpsc::channel();
        let (ender, ring, device) = (self.ender.take(), self.ring.take(), self.device.take());
        thread::spawn(move || {
            device.map_or(Ok(()), thread::JoinHandle::join).expect("the device's thread");
            if let Some(end) = ender {
                end();
            }
            let _ = done.send(ring.map_or(Ok(()), Ring::join));
        });
        ended.recv_timeout(DEADLINE).expect("the end in time").expect("no queue failed");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.watched.take());
        // Only where the test did not come to its end.
        let _ = unmount(self.dir.path(), UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

/// Whoever waits for an answer cannot be killed, and keeps this process. So a mount that lasts too long is cut off.
fn watch(dir: PathBuf) -> Sender<()> {
    let (watched, end) = mpsc::channel();
    thread::spawn(move || {
        if end.recv_timeout(3 * DEADLINE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("cut off: {}", dir.display());
            let _ = unmount(&dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
    });
    watched
}

fn reply(device: &OwnedFd, unique: &[u8], error: i32, body: &[u8]) {
    let len = (16 + body.len()) as u32;
    let head = [&len.to_ne_bytes()[..], &error.to_ne_bytes(), unique].concat();
    // Whoever asked may be gone, and the connection too.
    let _ = rustix::io::writev(device, &[IoSlice::new(&head), IoSlice::new(body)]);
}

/// Until the connection ends.
fn serve_device(device: &OwnedFd, files: &Files) {
    let mut request = vec![0; PAYLOAD_BYTES + 8192];
    let mut body = vec![0; PAYLOAD_BYTES];
    loop {
        let len = match rustix::io::read(device, &mut *request) {
            Ok(len) => len,
            Err(rustix::io::Errno::NODEV) => return,
            Err(_) => continue,
        };
        let opcode = u32::from_ne_bytes(request[4..8].try_into().expect("four"));
        let (header, rest) = request[..len].split_first_chunk::<40>().expect("a header");
        // FORGET, INTERRUPT and BATCH_FORGET are not answered.
        if [2, 36, 42].contains(&opcode) {
            continue;
        }
        let (args, payload) = rest.split_at(args_bytes(opcode).min(rest.len()));
        let unique = &header[8..16];
        match files.answer(header, args, payload) {
            Out::Error(errno) => reply(device, unique, -errno, &[]),
            Out::Small(bytes, len) => reply(device, unique, 0, &bytes[..len]),
            Out::Long { value, .. } => reply(device, unique, 0, &value),
            Out::Read { file, off, len } => {
                files.copy(file, off, &mut body[..len]);
                reply(device, unique, 0, &body[..len]);
            }
            Out::Special(..) => reply(device, unique, -libc::EIO, &[]),
        }
    }
}
