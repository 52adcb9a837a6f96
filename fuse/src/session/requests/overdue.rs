//! Requests whose threads are held up for longer than anything may take: an append to the metadata's log on a disk that
//! hangs is the one thing that nobody can leave behind (docs/adr/0082). The kernel is told `ETIMEDOUT` in their place,
//! so that programs go on; what their own threads answer later is nobody's any more.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use kos_types::patience;

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
    /// `answer` tells the kernel, or says `NotFound`. Without a thread that looks, nothing is answered in another's place.
    /// `look_too` is called at each look.
    pub(super) fn new(
        answer: impl Fn(u64) -> io::Result<()> + Send + 'static,
        look_too: impl Fn() + Send + 'static,
    ) -> Self {
        let requests = Arc::<Requests>::default();
        let seen = Arc::downgrade(&requests);
        let look = move || {
            while look(&seen, patience(LIMIT), &answer).is_some() {
                look_too();
            }
        };
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
