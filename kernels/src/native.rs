//! Programs of this machine, through the launcher.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kos_types::{Error, Kind, Result};

use crate::launch::Order;
use crate::{Attempt, Event, Executor, Stop, Task};

/// The launcher kills and reaps what is left; far more than that takes.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// The executor of programs. When it is dropped, what it runs ends.
pub struct Native {
    launcher: Child,
    orders: Mutex<Option<ChildStdin>>,
    reader: Option<JoinHandle<()>>,
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("launcher", &self.launcher.id()).finish_non_exhaustive()
    }
}

impl Native {
    /// Start the launcher: `program` with `args` must call [`crate::launch::run`]. `report` is called for each
    /// event, from a thread of its own.
    ///
    /// # Errors
    /// `Io` when the launcher cannot be started.
    pub fn start(program: &Path, args: &[&OsStr], report: impl Fn(Event) + Send + 'static) -> Result<Self> {
        let mut command = Command::new(program);
        // What ps shows; the program may be a path that says nothing.
        command.arg0("fabricd").args(args).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut launcher = command.spawn().map_err(|e| Error::io("start the launcher", &e))?;
        let (orders, ends) = (launcher.stdin.take(), launcher.stdout.take());
        let reader = move || {
            if let Some(ends) = ends {
                read(ends, &report);
            }
            report(Event::Gone);
        };
        let reader = thread::Builder::new().name("launcher".into()).spawn(reader);
        let reader = Some(reader.map_err(|e| Error::io("launcher: thread", &e))?);
        Ok(Self { launcher, orders: Mutex::new(orders), reader })
    }

    fn order(&self, order: &Order) -> Result<()> {
        let mut line =
            serde_json::to_vec(order).map_err(|e| Error::new(Kind::Invalid, format!("order: {e}")))?;
        line.push(b'\n');
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = orders.as_mut().ok_or_else(|| Error::new(Kind::Io, "launcher: it has ended"))?;
        pipe.write_all(&line).map_err(|e| Error::io("launcher", &e))
    }

    fn wait(&mut self) -> std::io::Result<()> {
        let began = Instant::now();
        while self.launcher.try_wait()?.is_none() {
            if began.elapsed() > END_DEADLINE {
                eprintln!("kos-kernels: the launcher does not end within {END_DEADLINE:?}: killed");
                self.launcher.kill()?;
                self.launcher.wait()?;
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

fn read(ends: ChildStdout, report: &impl Fn(Event)) {
    for line in BufReader::new(ends).lines() {
        let ended = line.map_err(|e| e.to_string());
        match ended.and_then(|line| serde_json::from_str(&line).map_err(|e| e.to_string())) {
            Ok(ended) => report(Event::Ended(ended)),
            Err(e) => return eprintln!("kos-kernels: reading from the launcher: {e}"),
        }
    }
}

impl Executor for Native {
    fn start(&self, task: &Task) -> Result<()> {
        self.order(&Order::Start(task.clone()))
    }

    fn stop(&self, attempt: Attempt, how: Stop) -> Result<()> {
        self.order(&Order::Stop(attempt, how))
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // The end of its input is the order to end everything.
        drop(self.orders.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Err(e) = self.wait() {
            eprintln!("kos-kernels: ending the launcher: {e}");
        }
        if self.reader.take().is_some_and(|reader| reader.join().is_err()) {
            eprintln!("kos-kernels: the launcher's reader panicked");
        }
    }
}
