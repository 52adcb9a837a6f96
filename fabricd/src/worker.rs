//! A background thread that ends when its owner drops it.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_types::{Error, Result};

/// The thread's side: when to end.
pub(crate) struct Stop(Receiver<()>);

impl Stop {
    /// Wait; false when the thread is to end.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

/// The thread; it ends when this is dropped.
pub(crate) struct Worker {
    name: &'static str,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(name: &'static str, run: impl FnOnce(&Stop) + Send + 'static) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&Stop(stopped)))
            .map_err(|e| Error::io("background thread", &e))?;
        Ok(Self { name, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("fabricd: the {} panicked", self.name);
        }
    }
}
