//! Requests whose threads are held up for longer than anything may take: an append to the metadata's log on a disk that
//! hangs is the one thing that nobody can leave behind (docs/adr/0082). The kernel is told `ETIMEDOUT` in their place,
//! so that programs go on; what their own threads answer later is nobody's any more.
//!
//! The kernel takes an answer only from the descriptor that the request came by, which is a thread's own. So all of this
//! process are tried: it must have one mount.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use kos_types::patience;
use rustix::process::{ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Beyond what a request waits for others, and then for one flush.
const LIMIT: Duration = Duration::from_mins(3);
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Requests under way that may be held up, by the kernel's numbers, and since when.
type Requests = Mutex<Vec<(u64, Instant)>>;

fn lock(requests: &Requests) -> MutexGuard<'_, Vec<(u64, Instant)>> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The requests of one mount.
pub(super) struct Overdue(Arc<Requests>);

/// One of them is under way.
pub(super) struct Watched(Arc<Requests>, u64);

impl Overdue {
    /// Without a thread that looks, nothing is answered in another's place.
    pub(super) fn new() -> Self {
        let requests = Arc::<Requests>::default();
        let seen = Arc::downgrade(&requests);
        let look = move || while look(&seen, patience(LIMIT), answer).is_some() {};
        if let Err(e) = thread::Builder::new().name("overdue".into()).spawn(look) {
            kos_types::log!("kos-fuse: {e}: requests that a disk holds up are not answered until it does");
        }
        Self(requests)
    }

    /// This one begins, and ends when the answer is dropped.
    pub(super) fn watch(&self, request: u64) -> Watched {
        lock(&self.0).push((request, Instant::now()));
        Watched(Arc::clone(&self.0), request)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut requests = lock(&self.0);
        if let Some(at) = requests.iter().position(|&(request, _)| request == self.1) {
            requests.swap_remove(at);
        }
    }
}

/// Answer what takes longer than `limit`, then wait; nothing when the mount is gone.
fn look(requests: &Weak<Requests>, limit: Duration, answer: impl Fn(u64) -> io::Result<()>) -> Option<()> {
    let late: Vec<u64> = lock(&*requests.upgrade()?)
        .extract_if(.., |(_, since)| since.elapsed() > limit)
        .map(|(request, _)| request)
        .collect();
    for request in late {
        match answer(request) {
            Ok(()) => {
                kos_types::log!("kos-fuse: request {request} takes too long and was answered ETIMEDOUT")
            }
            // It has just been answered by its own thread.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => kos_types::log!("kos-fuse: request {request} takes too long, and has no answer: {e}"),
        }
    }
    thread::sleep(PERIOD);
    Some(())
}

/// Tell the kernel, by whichever descriptor the request came.
fn answer(request: u64) -> io::Result<()> {
    let mut text = Vec::with_capacity(16);
    text.extend(16_u32.to_ne_bytes());
    text.extend((-libc::ETIMEDOUT).to_ne_bytes());
    text.extend(request.to_ne_bytes());
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut told = Err(io::ErrorKind::NotFound.into());
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let is_device = fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("/dev/fuse"));
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(number) = number.filter(|_| is_device) else { continue };
        let device = pidfd_getfd(&own, number as ForeignRawFd, PidfdGetfdFlags::empty())?;
        match rustix::io::write(&device, &text) {
            Ok(_) => return Ok(()),
            // Not by this one.
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => told = Err(e.into()),
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn what_is_overdue_is_answered_once() {
        let requests = Arc::<Requests>::default();
        let overdue = Overdue(Arc::clone(&requests));
        let (seen, told) = (Arc::downgrade(&requests), RefCell::new(Vec::new()));
        let tell = |request| {
            told.borrow_mut().push(request);
            Ok(())
        };
        let (first, second) = (overdue.watch(1), overdue.watch(2));
        look(&seen, LIMIT, tell).expect("mounted");
        assert!(told.borrow().is_empty());
        drop(first);
        (0..2).for_each(|_| look(&seen, Duration::ZERO, tell).expect("mounted"));
        assert_eq!(*told.borrow(), [2]);
        drop(second);
        drop((overdue, requests));
        assert!(look(&seen, LIMIT, tell).is_none());
    }
}
