//! Lines in the daemon's log, which is its standard error.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread;
use std::time::Duration;

/// Lines that wait to be written; those that find no room are lost.
const WAITING_MAX: usize = 1024;

/// Where lines go once there is a thread for them.
static WRITER: OnceLock<SyncSender<Item>> = OnceLock::new();

enum Item {
    Line(String),
    /// Everything before is written.
    Written(Sender<()>),
}

/// A line in the log, formatted as by `format!`. `eprintln!` panics when it cannot be written, and a
/// disk that is full must not end the daemon.
#[macro_export]
macro_rules! log {
    ($($part:tt)*) => { $crate::log_line(format_args!($($part)*)) };
}

/// What [`log!`] calls. One write, so that lines of several threads do not mix.
pub fn log_line(line: fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    match WRITER.get() {
        // Without room the log's disk hangs, or nearly.
        Some(writer) => drop(writer.try_send(Item::Line(line))),
        None => write(&line),
    }
}

fn write(line: &str) {
    // There is nobody left to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// From now on lines are written by a thread, so that nobody waits for the log's disk. Whoever ends the process calls
/// [`log_written`] first.
pub fn log_in_thread() {
    let (writer, items) = mpsc::sync_channel(WAITING_MAX);
    let run = move || {
        for item in items {
            match item {
                Item::Line(line) => write(&line),
                // It may have waited long enough.
                Item::Written(done) => drop(done.send(())),
            }
        }
    };
    match thread::Builder::new().name("log".into()).spawn(run) {
        Ok(_) => drop(WRITER.set(writer)),
        Err(e) => crate::log!("log: {e}; lines are written by whoever has them"),
    }
}

/// Wait until all lines so far are written, for a second at most.
pub fn log_written() {
    let Some(writer) = WRITER.get() else { return };
    let (done, written) = mpsc::channel();
    if writer.try_send(Item::Written(done)).is_ok() {
        // There is nobody left to tell.
        let _ = written.recv_timeout(Duration::from_secs(1));
    }
}
