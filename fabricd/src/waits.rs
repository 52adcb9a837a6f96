//! What a start or an end waits for, said again and again while it takes long: this is how somebody finds out which of its
//! waits it is.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between two lines.
const PERIOD: Duration = Duration::from_secs(10);

/// Watches a start or an end; over when dropped.
#[derive(Debug)]
pub(crate) struct Waits {
    stages: Option<Sender<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Waits {
    /// Begin to watch `what`. Without a thread for it that goes on all the same.
    pub(crate) fn begin(what: &'static str) -> Self {
        Self::watch(what, PERIOD, |line| kos_types::log!("fabricd: {line}"))
    }

    fn watch(what: &'static str, period: Duration, say: impl Fn(&str) + Send + 'static) -> Self {
        let (stages, next) = mpsc::channel();
        let run = move || {
            let (mut stage, mut since) = ("its beginning".to_owned(), Instant::now());
            loop {
                match next.recv_timeout(period) {
                    Ok(now) => (stage, since) = (now, Instant::now()),
                    Err(RecvTimeoutError::Timeout) => {
                        say(&format!("the {what} waits for {stage}, since {} s", since.elapsed().as_secs()));
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = thread::Builder::new().name("waits".into()).spawn(run);
        let thread = thread.inspect_err(|e| kos_types::log!("fabricd: nobody watches the {what}: {e}")).ok();
        Self { stages: Some(stages), thread }
    }

    /// From now on it waits for this.
    pub(crate) fn waits_for(&self, stage: impl Into<String>) {
        if let Some(stages) = &self.stages {
            // Nobody listens when there was no thread.
            let _ = stages.send(stage.into());
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        drop(self.stages.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("fabricd: the watcher of waits panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_named() {
        let (says, said) = mpsc::channel();
        let say = move |line: &str| says.send(line.to_owned()).expect("the test listens");
        let ending = Waits::watch("end", Duration::from_millis(5), say);
        ending.waits_for("a");
        let heard = |stage| {
            let begun = Instant::now();
            while !said.recv_timeout(Duration::from_secs(60)).expect("a line").contains(stage) {
                assert!(begun.elapsed() < Duration::from_secs(60), "{stage}");
            }
        };
        heard("waits for a,");
        ending.waits_for("b");
        heard("waits for b,");
        drop(ending);
        assert!(said.try_iter().count() < 1000, "it has ended");
    }
}
