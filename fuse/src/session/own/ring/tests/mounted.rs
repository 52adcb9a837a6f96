//! A mount of [`Files`] by either transport, and programs that use it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, unmount};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::super::{Prepared, Refused, Ring, Shape};
use super::PAYLOAD_BYTES;
use super::files::{Files, Out, args_bytes};

/// Far more than anything takes on a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
const INIT: u32 = 26;
const OVER_IO_URING: u64 = 1 << 41;

#[derive(Clone, Copy)]
pub(super) enum Transport {
    /// So many threads.
    Device(usize),
    Ring(Shape),
}

/// Gone when dropped, whoever still waits for an answer.
pub(super) struct Mounted {
    pub(super) files: Arc<Files>,
    pub(super) refused: Option<Refused>,
    dir: TempDir,
    ender: Option<Box<dyn Fn() + Send + Sync>>,
    ring: Option<Ring>,
    device: Vec<thread::JoinHandle<()>>,
    /// Disconnected to end the watch.
    watched: Option<Sender<()>>,
}

/// Whether the kernel has this, now. If not, the test has to end: without a kernel for it there is nothing to test.
pub(super) fn offered() -> bool {
    match fs::read_to_string(PARAMETER) {
        Ok(value) if value.trim() == "Y" => return true,
        Ok(_) => {}
        Err(e) => {
            eprintln!("not tested: this kernel has no FUSE over io_uring: {PARAMETER}: {e}");
            return false;
        }
    }
    fs::write(PARAMETER, "Y").inspect_err(|e| eprintln!("not tested: {PARAMETER} cannot be set: {e}")).is_ok()
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
        let mounted = Self::new(Transport::Ring(shape), |prepared| prepared);
        assert!(mounted.refused.is_none(), "{:?}", mounted.refused);
        mounted
    }

    pub(super) fn new(transport: Transport, change: impl FnOnce(Prepared) -> Prepared) -> Self {
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
            device: Vec::new(),
            watched: Some(watch(dir.path().into())),
            dir,
        };
        let (prepared, threads) = match transport {
            Transport::Device(threads) => (None, threads),
            Transport::Ring(shape) => (Some(change(Ring::prepare(shape, &files).expect("rings"))), 1),
        };
        begin(&device, prepared.is_some());
        match prepared.map(|prepared| prepared.start(&device)) {
            Some(Ok(ring)) => {
                mounted.ender = Some(Box::new(ring.ender()));
                mounted.ring = Some(ring);
            }
            Some(Err(refused)) => mounted.refused = Some(refused),
            None => {}
        }
        for number in 0..threads {
            let device = if number == 0 { Arc::clone(&device) } else { Arc::new(cloned(&device)) };
            let files = Arc::clone(&files);
            mounted.device.push(thread::spawn(move || serve_device(&device, &files)));
        }
        mounted
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unmount, whatever waits for answers, and wait for everything to end.
    pub(super) fn end(mut self) {
        unmount(self.dir.path(), UnmountFlags::FORCE | UnmountFlags::DETACH).expect("unmount");
        let (done, ended) = mpsc::channel();
        let (ender, ring, device) = (self.ender.take(), self.ring.take(), std::mem::take(&mut self.device));
        thread::spawn(move || {
            device.into_iter().for_each(|thread| thread.join().expect("the device's thread"));
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

/// A device of its own for another thread, as libfuse does.
fn cloned(device: &OwnedFd) -> OwnedFd {
    let number = device.as_raw_fd();
    let own = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    #[expect(unsafe_code, reason = "FUSE_DEV_IOC_CLONE has no safe wrapper")]
    // SAFETY: it reads a number from where the argument points.
    let done = unsafe { libc::ioctl(own.as_raw_fd(), 0x8004_e500, &raw const number) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    own.into()
}

/// INIT: the answer of 7.45, and some flags.
fn begin(device: &OwnedFd, ring: bool) {
    let mut request = vec![0; 16384];
    let len = rustix::io::read(device, &mut *request).expect("INIT");
    assert!(len >= 56 && request[4..8] == INIT.to_ne_bytes(), "not INIT");
    let half = |at: usize| u64::from(u32::from_ne_bytes(request[at..at + 4].try_into().expect("four")));
    let offered = half(40 + 12) | half(40 + 16) << 32;
    // ASYNC_READ, BIG_WRITES, ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES, INIT_EXT
    let mut flags: u64 = 1 | 1 << 5 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 30;
    if ring {
        assert!(offered & OVER_IO_URING != 0, "FUSE over io_uring is not offered");
        flags |= OVER_IO_URING;
    }
    let mut answer = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| answer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &7u32.to_ne_bytes());
    put(4, &45u32.to_ne_bytes());
    put(8, &(128u32 << 10).to_ne_bytes());
    put(12, &(flags as u32).to_ne_bytes());
    put(16, &64u16.to_ne_bytes());
    put(18, &48u16.to_ne_bytes());
    put(20, &(PAYLOAD_BYTES as u32).to_ne_bytes());
    put(24, &1u32.to_ne_bytes());
    put(28, &((PAYLOAD_BYTES / 4096) as u16).to_ne_bytes());
    put(32, &((flags >> 32) as u32).to_ne_bytes());
    reply(device, &request[8..16], 0, &answer);
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
