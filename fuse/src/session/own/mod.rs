//! Our own session: the kernel's protocol on /dev/fuse, or by io_uring.

mod answer;
mod caches;
mod device;
mod dispatch;
mod ioctl;
mod pool;
mod reply;
mod ring;
mod ringed;
mod slow;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use kos_types::Fabric;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::device::Channels;
use self::dispatch::Dispatch;
use self::pool::Pool;
use self::ring::{Prepared, Refused, Ring, Shape, switch_on};
use self::ringed::Ringed;
use super::protocol::{
    Agreed, HEADER_BYTES, Header, InitIn, OutHeader, Refused as Unspoken, Wanted, agree, flag, notify, opcode,
};
use super::requests::Requests;
use super::{BACKGROUND_MAX, Caches, PAGE_BYTES, Session, WRITE_BYTES_MAX};
use crate::fs::Fs;
use crate::seal::Backing;

/// The kernel offers less; what it reads ahead is set after mounting.
const MAX_READAHEAD: u32 = 1 << 30;
/// The kernel sends its first request when it is mounted.
const HANDSHAKE_SECONDS: i64 = 10;
/// Larger than the first request.
const HANDSHAKE_BYTES: usize = 8192;
/// What the mount wants from the kernel, and what it does without.
const WANTED: [(u64, &str); 15] = [
    (flag::ASYNC_READ, "reads ahead at once"),
    (flag::BIG_WRITES, "writes of more than a page"),
    (flag::PARALLEL_DIROPS, "lookups in one directory at once"),
    (flag::DO_READDIRPLUS, "listings with attributes"),
    (flag::READDIRPLUS_AUTO, "listings with attributes where they are used"),
    (flag::ASYNC_DIO, "O_DIRECT requests at once"),
    (flag::HANDLE_KILLPRIV_V2, "writes without a look at the file's capabilities"),
    (flag::DIRECT_IO_ALLOW_MMAP, "mappings of what goes past the page cache"),
    (flag::CACHE_SYMLINKS, "symbolic links kept"),
    (flag::MAX_PAGES, "requests of more than 128 KiB"),
    (flag::POSIX_ACL, "access lists"),
    (flag::DONT_MASK, "default access lists"),
    (flag::PASSTHROUGH, "copies of sealed files read in place"),
    (flag::INIT_EXT, "newer features"),
    (flag::HAS_RESEND, "going on where a process was killed"),
];

/// Entries that each ring begins with, and those that it may come to have.
const DEPTH: usize = 4;
const ENTRIES_MAX: usize = 512;
/// Threads for what waits.
const WORKERS: usize = 8;

/// The connection, and whether it is wanted by rings.
pub(crate) struct Own<F, const RING: bool> {
    dispatch: Arc<Dispatch<F>>,
    channels: Arc<Channels>,
    pool: Arc<Pool>,
    ring: Option<Ring>,
}

/// What answers the requests of a connection.
fn dispatch<F: Fabric + 'static>(
    fs: Arc<Fs<F>>,
    agreed: Agreed,
    channels: &Arc<Channels>,
    pool: &Arc<Pool>,
) -> Arc<Dispatch<F>> {
    let maps = agreed.has(flag::DIRECT_IO_ALLOW_MMAP);
    fs.streams.store(maps && super::takes_pages(WRITE_BYTES_MAX), Ordering::Relaxed);
    fs.in_place.store(agreed.has(flag::PASSTHROUGH), Ordering::Relaxed);
    fs.signals.will_be_told();
    let (late, late_pool) = (Arc::downgrade(channels), Arc::clone(pool));
    let give_up = move |unique| match late_pool.answer(unique, libc::ETIMEDOUT) {
        Ok(()) => Ok(()),
        Err(_) => late.upgrade().map_or(Ok(()), |all| all.answer(unique, libc::ETIMEDOUT)),
    };
    let (signalled, signalled_pool) = (Arc::downgrade(channels), Arc::clone(pool));
    let look = move || {
        signalled_pool.look();
        _ = signalled.upgrade().map(|all| all.look());
    };
    let requests = Requests::new(fs, give_up, look);
    Arc::new(Dispatch { requests, agreed, channels: Arc::downgrade(channels), pool: Arc::clone(pool) })
}

/// Rings for requests, where the system allows them.
fn prepare<F: Fabric + 'static>(wanted: &Wanted, ringed: &Arc<Ringed<F>>) -> Option<Prepared> {
    let payload_bytes = (u32::from(wanted.max_pages) * PAGE_BYTES) as usize;
    let shape = Shape { payload_bytes, depth: DEPTH, entries_max: ENTRIES_MAX };
    let prepared = switch_on().and_then(|switched| {
        if switched {
            kos_types::log!(
                "kos-fuse: io_uring is switched on for FUSE, for mounts of this machine made from now on"
            );
        }
        Ring::prepare(shape, ringed)
    });
    prepared.inspect_err(|e| kos_types::log!("kos-fuse: no io_uring: {e}; requests come by /dev/fuse")).ok()
}

/// Read the kernel's first request and answer it.
fn shake_hands(device: &OwnedFd, wanted: &Wanted) -> io::Result<Agreed> {
    let mut buffer = vec![0; HANDSHAKE_BYTES];
    // One answer to a newer kernel, which asks again, and one to that.
    for _ in 0..2 {
        let mut polled = [PollFd::new(device, PollFlags::IN)];
        let limit = Timespec { tv_sec: HANDSHAKE_SECONDS, tv_nsec: 0 };
        if poll(&mut polled, Some(&limit))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not begin"));
        }
        let len = rustix::io::read(device, &mut buffer)?;
        let header = Header::decode(&buffer[..len]).map_err(io::Error::other)?;
        if header.opcode != opcode::INIT {
            return Err(io::Error::other("the kernel's first request is not INIT"));
        }
        let init = InitIn::decode(&buffer[HEADER_BYTES..len]).map_err(io::Error::other)?;
        let (agreed, body) = match agree(&init, wanted) {
            Ok((agreed, body)) => (Some(agreed), body),
            Err(Unspoken::Newer(body)) => (None, body),
            Err(refused) => {
                let error = OutHeader::error(header.unique, libc::EPROTO).encode();
                rustix::io::write(device, &error)?;
                return Err(io::Error::other(refused));
            }
        };
        let mut answer = OutHeader::answer(header.unique, body.len()).encode().to_vec();
        answer.extend(body);
        rustix::io::write(device, &answer)?;
        if let Some(agreed) = agreed {
            return Ok(agreed);
        }
    }
    Err(io::Error::other("the kernel does not speak FUSE's protocol 7"))
}

impl<F: Fabric + 'static, const RING: bool> Session<F> for Own<F, RING> {
    fn begin(fs: Arc<Fs<F>>, device: OwnedFd, threads: usize) -> io::Result<Self> {
        let locks = if fs.share_locks { flag::POSIX_LOCKS | flag::FLOCK_LOCKS } else { 0 };
        let mut wanted = Wanted {
            flags: WANTED.iter().fold(locks, |all, (flag, _)| all | flag),
            max_write: WRITE_BYTES_MAX,
            max_readahead: MAX_READAHEAD,
            max_pages: WRITE_BYTES_MAX.div_ceil(PAGE_BYTES) as u16,
            max_background: BACKGROUND_MAX,
            // A copy lies on a filesystem that is on no other one.
            max_stack_depth: 1,
            ..Wanted::default()
        };
        let pool = Arc::<Pool>::default();
        let ringed = Arc::new(Ringed { dispatch: OnceLock::new(), pool: Arc::clone(&pool) });
        // Whatever can fail without the kernel's side fails before it is told.
        let prepared = if RING { prepare(&wanted, &ringed) } else { None };
        if prepared.is_some() {
            wanted.flags |= flag::OVER_IO_URING;
        }
        let agreed = shake_hands(&device, &wanted)?;
        if prepared.is_some() && !agreed.has(flag::OVER_IO_URING) {
            kos_types::log!(
                "kos-fuse: no io_uring: this kernel does not offer it; requests come by /dev/fuse"
            );
        }
        for (_, without) in WANTED.iter().filter(|(flag, _)| agreed.lacks(&wanted) & flag != 0) {
            kos_types::log!("kos-fuse: this kernel does not offer {without}; the mount works without");
        }
        fs.arena.set_terms(agreed.to_words());
        let device = Arc::new(device);
        let channels = Arc::new(Channels::new(Arc::clone(&device)));
        let dispatch = dispatch(fs, agreed, &channels, &pool);
        let mut ring = None;
        if let Some(prepared) = prepared.filter(|_| agreed.has(flag::OVER_IO_URING)) {
            pool.start(WORKERS.max(threads), &dispatch)?;
            // Set once, here.
            drop(ringed.dispatch.set(Arc::clone(&dispatch)));
            match prepared.start(&device) {
                Ok(rings) => ring = Some(rings),
                Err(Refused { error, usable: true }) => {
                    kos_types::log!("kos-fuse: no io_uring: {error}; requests come by /dev/fuse");
                }
                Err(Refused { error, .. }) => return Err(error),
            }
        }
        if ring.is_none() {
            (1..threads).try_for_each(|_| channels.more())?;
        }
        Ok(Self { dispatch, channels, pool, ring })
    }

    fn resume(fs: Arc<Fs<F>>, devices: Vec<OwnedFd>) -> io::Result<Self> {
        let other =
            || io::Error::new(io::ErrorKind::InvalidData, "the earlier process was of another version");
        let agreed = fs.arena.terms().and_then(Agreed::of_words).ok_or_else(other)?;
        let mut devices = devices.into_iter();
        let first = devices.next().ok_or(io::ErrorKind::NotConnected)?;
        let channels = Arc::new(Channels::new(Arc::new(first)));
        devices.for_each(|device| channels.add(device));
        let pool = Arc::<Pool>::default();
        let dispatch = dispatch(fs, agreed, &channels, &pool);
        Ok(Self { dispatch, channels, pool, ring: None })
    }

    fn ask_again(&self) -> io::Result<()> {
        caches::Kernel(Arc::downgrade(&self.channels)).tell(&notify::resend())
    }

    /// By a ring requests can be lost that come while its thread is being killed (ADR 96).
    fn devices(&self) -> Vec<Arc<OwnedFd>> {
        if self.ring.is_some() || !self.dispatch.agreed.has(flag::HAS_RESEND) {
            return Vec::new();
        }
        self.channels.all().iter().map(|channel| Arc::clone(channel.device())).collect()
    }

    fn notifier(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(self.channels.first().device()))
    }

    fn copy(&self, id: u32) -> Backing {
        answer::backing(id, &Arc::downgrade(&self.channels))
    }

    fn caches(&self) -> Box<dyn Caches> {
        Box::new(caches::Kernel(Arc::downgrade(&self.channels)))
    }

    fn serve(self) -> io::Result<()> {
        let Self { dispatch, channels, pool, ring } = self;
        let Some(ring) = ring else { return serve_device(&dispatch, &channels) };
        // By it come forgets and interrupts only.
        let (device, end) = (Arc::clone(channels.first()), ring.ender());
        let serve = move || {
            let ended = device.serve(&*dispatch);
            end();
            ended
        };
        let device = thread::Builder::new().name("fuse".into()).spawn(serve)?;
        let ended = ring.join();
        pool.end();
        // The others' programs have answers until whoever is told of it ends the connection.
        ended?;
        joined(device)
    }
}

/// With a thread for each descriptor, until the connection ends.
fn serve_device<F: Fabric + 'static>(dispatch: &Arc<Dispatch<F>>, channels: &Channels) -> io::Result<()> {
    let all = channels.all();
    let others: Vec<_> = all[1..]
        .iter()
        .enumerate()
        .map(|(at, channel)| {
            let (channel, dispatch) = (Arc::clone(channel), Arc::clone(dispatch));
            let serve = move || channel.serve(&*dispatch);
            thread::Builder::new().name(format!("fuse-{}", at + 1)).spawn(serve)
        })
        .collect::<io::Result<_>>()?;
    let mut ended = all[0].serve(&**dispatch);
    for thread in others {
        let other = joined(thread);
        ended = ended.and(other);
    }
    ended
}

fn joined(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}
